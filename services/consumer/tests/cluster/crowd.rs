//! Many clients that come back by themselves whenever their line breaks, and how long each one heard nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::Transport;
use crate::cluster::say;
use crate::reader::Reader;

/// Every client must receive something within this time after a change is over, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
pub struct Crowd {
    members: Vec<Arc<Mutex<Member>>>,
    tasks: JoinSet<()>,
    longest: Option<Silence>,
}

struct Member {
    transport: Transport,
    /// `through the forward`.
    way: &'static str,
    reader: Reader,
    connections: usize,
    heard: Instant,
    /// The longest time without a message since it was last asked for.
    silence: Duration,
}

/// A time without a message.
struct Silence {
    length: Duration,
    /// `websocket through the Service, while the consumer was upgraded`.
    whose: String,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s ({})", self.length.as_secs_f64(), self.whose)
    }
}

impl Crowd {
    /// Adds clients of one transport.
    pub fn join(
        &mut self,
        topic: &str,
        (way, address): (&'static str, SocketAddr),
        transport: Transport,
        count: usize,
    ) {
        for _ in 0..count {
            let member = Arc::new(Mutex::new(Member {
                transport,
                way,
                reader: Reader::new(topic),
                connections: 0,
                heard: Instant::now(),
                silence: Duration::ZERO,
            }));
            self.members.push(member.clone());
            self.tasks.spawn(follow(member, address));
        }
    }

    /// Waits until each client has got a new message, and prints the longest time that one of them had to wait since the
    /// last call: `while the consumer was upgraded`.
    pub async fn go_on(&mut self, during: &str) {
        let now = Instant::now();
        let what = format!("a message {during}");
        self.each(&what, |member| member.heard > now).await;
        let silences = self.members.iter().map(|member| {
            let mut member = lock(member);
            Silence {
                length: std::mem::take(&mut member.silence),
                whose: format!("{member}, {during}"),
            }
        });
        let longest = silences.max_by_key(|silence| silence.length);
        let longest = longest.expect("a crowd has members");
        say(&format!("  silence of {longest}"));
        let before = self.longest.take();
        let worse = before.filter(|before| before.length >= longest.length);
        self.longest = worse.or(Some(longest));
    }

    /// Resets the silences so far: those of a start do not count.
    pub fn forget_silences(&mut self) {
        self.longest = None;
    }

    /// Waits until each client has got so many messages.
    pub async fn have(&mut self, messages: usize) {
        let what = format!("{messages} messages");
        self.each(&what, |member| member.reader.count() >= messages)
            .await;
    }

    /// Waits until it holds for each of them; the panic says of how many of which kind it does not.
    async fn each(&mut self, what: &str, holds: impl Fn(&Member) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut waiting: Vec<_> = self.members.iter().collect();
        loop {
            if let Some(Err(error)) = self.tasks.try_join_next() {
                // The client saw the guarantee broken.
                std::panic::resume_unwind(error.into_panic());
            }
            waiting.retain(|member| !holds(&lock(member)));
            if waiting.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                let mut kinds = BTreeMap::<_, usize>::new();
                for member in waiting {
                    *kinds.entry(lock(member).to_string()).or_default() += 1;
                }
                panic!("waited {PATIENCE:?} for {what}, in vain: {kinds:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How often clients came back.
    pub fn reconnects(&self) -> usize {
        let connections = self.members.iter().map(|member| lock(member).connections);
        connections.sum::<usize>() - self.members.len()
    }

    /// Waits until everyone has everything, checks the guarantee for all, and prints the longest silence.
    pub async fn finish(mut self, records: &BTreeSet<(usize, i64)>) {
        let what = format!("all {} records", records.len());
        self.each(&what, |member| member.reader.has_all(records))
            .await;
        for member in &self.members {
            let member = lock(member);
            member.reader.check(records);
            // Kafka still has every record, so there is nothing that could not be delivered.
            let gaps = &member.reader.gaps;
            assert!(gaps.is_empty(), "{:?} got gaps: {gaps:?}", member.transport);
        }
        let (clients, reconnects) = (self.members.len(), self.reconnects());
        let records = records.len();
        say(&format!(
            "{clients} clients, {records} records, {reconnects} reconnects, nothing lost and nothing twice"
        ));
        if let Some(longest) = self.longest {
            say(&format!("longest silence: {longest}"));
        }
    }
}

async fn follow(member: Arc<Mutex<Member>>, address: SocketAddr) {
    loop {
        let mut client = {
            let mut member = lock(&member);
            member.connections += 1;
            member.reader.connect(address, member.transport)
        };
        while let Some(event) = client.next().await {
            let mut member = lock(&member);
            member.reader.take(&event);
            if event["type"] == "message" {
                let silence = member.heard.elapsed();
                member.silence = member.silence.max(silence);
                member.heard = Instant::now();
            }
        }
        // No hundred clients come back at the same moment.
        tokio::time::sleep(Duration::from_millis(rand::random_range(50..300))).await;
    }
}

fn lock(member: &Arc<Mutex<Member>>) -> MutexGuard<'_, Member> {
    // One that panicked has said why; the panic goes on in `each`.
    member
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", name(self.transport), self.way)
    }
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Sse => "server-sent events",
        Transport::WebSocket => "websocket",
        Transport::SocketIo => "socket.io",
        Transport::Polling => "socket.io polling",
    }
}
