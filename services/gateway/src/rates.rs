//! Rate limits: how often and how much one session, and one client address, may send.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedI64ValueParser;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use herald_runtime::http::{Proxies, failure, network};
use hyper::header::RETRY_AFTER;
use hyper::{Request, StatusCode};
use prometheus::{IntCounterVec, Opts};
use warp::reply::Response;

/// How often the state of clients that have not sent for a while is dropped.
const PRUNE: Duration = Duration::from_secs(10);

/// The options of the rate limits. Each allows bursts of as much as it allows in one second; 0 is no limit.
#[derive(Args, Clone, Debug)]
pub struct RateArgs {
    /// Proxies whose `X-Forwarded-For` is trusted: `10.0.0.0/8,fd00::/8`. The client's address is the rightmost one in it that is
    /// not such a proxy.
    #[arg(long, env, default_value = "", hide_default_value = true)]
    pub trusted_proxies: Proxies,

    /// WebSocket connections that one session may open per second; 0 is no limit.
    #[arg(long, env, default_value_t = 10, value_parser = rate())]
    pub session_connections_per_second: u32,

    /// Frames that one session may send per second; 0 is no limit. Faster ones wait in their socket.
    #[arg(long, env, default_value_t = 1_000, value_parser = rate())]
    pub session_frames_per_second: u32,

    /// Bytes of frames that one session may send per second; 0 is no limit.
    #[arg(long, env, default_value_t = 8 << 20, value_parser = rate())]
    pub session_bytes_per_second: u32,

    /// Requests for one session per second; 0 is no limit.
    #[arg(long, env, default_value_t = 50, value_parser = rate())]
    pub session_requests_per_second: u32,

    /// WebSocket connections that one client address (of IPv6: its /64) may open per second; 0 is no limit. If not set, 100 for
    /// every address but loopback, as for the other limits per address.
    #[arg(long, env, value_parser = rate())]
    pub address_connections_per_second: Option<u32>,

    /// Frames that one client address may send per second; 0 is no limit. If not set, 5000 for every address but loopback.
    #[arg(long, env, value_parser = rate())]
    pub address_frames_per_second: Option<u32>,

    /// Bytes of frames and messages that one client address may send per second; 0 is no limit. If not set, 33554432 (32 MiB) for
    /// every address but loopback.
    #[arg(long, env, value_parser = rate())]
    pub address_bytes_per_second: Option<u32>,

    /// Requests that one client address may send per second; 0 is no limit. If not set, 200 for every address but loopback.
    #[arg(long, env, value_parser = rate())]
    pub address_requests_per_second: Option<u32>,
}

/// The limiter counts in nanoseconds per unit, so that higher rates would be rounded to none.
fn rate() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(..=100_000_000)
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connections,
    Frames,
    Bytes,
    Requests,
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Frames => "frames",
            Self::Bytes => "bytes",
            Self::Requests => "requests",
        }
    }
}

/// Whose limits count for a request. The session is a hash, so that long ids take no memory.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    session: Option<u128>,
    address: u128,
    is_loopback: bool,
}

impl Client {
    /// The number of its address; of IPv6, of its /64.
    pub fn address(&self) -> u128 {
        self.address
    }
}

struct Limit {
    kind: Kind,
    /// The label for metrics: `address` or `session`.
    by: &'static str,
    /// Whether it holds for loopback as well.
    loopback: bool,
    burst: NonZeroU32,
    limiter: DefaultKeyedRateLimiter<u128>,
}

/// The rate limits. Their state is one small entry for each client of the last seconds.
pub struct Rates {
    limits: Vec<Limit>,
    proxies: Proxies,
    hasher: RandomState,
    clock: DefaultClock,
    limited: IntCounterVec,
}

/// A limit that is exceeded.
#[derive(Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub wait: Duration,
    kind: Kind,
    by: &'static str,
}

impl Exceeded {
    pub fn sentence(&self) -> String {
        let (kind, by) = (self.kind.label(), self.by);
        format!("too many {kind} per second from this {by} (--{by}-{kind}-per-second)")
    }

    /// The response to a request: 429 with `Retry-After`.
    pub fn response(&self) -> Response {
        let mut response = failure(StatusCode::TOO_MANY_REQUESTS, &self.sentence());
        let seconds = (self.wait.as_secs_f64().ceil() as u64).max(1);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
        response
    }
}

impl Rates {
    /// `largest` is the number of bytes of the largest frame or message, which every limit of bytes must let through.
    pub fn new(args: &RateArgs, largest: u32) -> prometheus::Result<Self> {
        // A client that sends under a foreign session's id is stopped by its own address first.
        let RateArgs {
            trusted_proxies,
            session_connections_per_second,
            session_frames_per_second,
            session_bytes_per_second,
            session_requests_per_second,
            address_connections_per_second,
            address_frames_per_second,
            address_bytes_per_second,
            address_requests_per_second,
        } = args;
        let addresses = [
            (Kind::Connections, address_connections_per_second, 100),
            (Kind::Frames, address_frames_per_second, 5_000),
            (Kind::Bytes, address_bytes_per_second, 32 << 20),
            (Kind::Requests, address_requests_per_second, 200),
        ];
        let addresses = addresses.map(|(kind, rate, default)| {
            (kind, "address", rate.is_some(), rate.unwrap_or(default))
        });
        let sessions = [
            (Kind::Connections, session_connections_per_second),
            (Kind::Frames, session_frames_per_second),
            (Kind::Bytes, session_bytes_per_second),
            (Kind::Requests, session_requests_per_second),
        ];
        let sessions = sessions.map(|(kind, rate)| (kind, "session", true, *rate));
        let limits = addresses.into_iter().chain(sessions);
        let limits = limits.filter_map(|(kind, by, loopback, rate)| {
            let rate = NonZeroU32::new(rate)?;
            let least = if kind == Kind::Bytes { largest } else { 1 };
            let burst = rate.max(NonZeroU32::new(least)?);
            let limiter =
                DefaultKeyedRateLimiter::keyed(Quota::per_second(rate).allow_burst(burst));
            Some(Limit {
                kind,
                by,
                loopback,
                burst,
                limiter,
            })
        });
        let limits: Vec<Limit> = limits.collect();
        let limited = IntCounterVec::new(
            Opts::new(
                "herald_gateway_rate_limited_total",
                "connections and requests rejected and frames delayed by a rate limit, by what is limited and for whom",
            ),
            &["kind", "by"],
        )?;
        // So that each is there, with 0, before the first is exceeded.
        for limit in &limits {
            limited.with_label_values(&[limit.kind.label(), limit.by]);
        }
        Ok(Self {
            limits,
            proxies: trusted_proxies.clone(),
            hasher: RandomState::new(),
            clock: DefaultClock::default(),
            limited,
        })
    }

    /// For the registry.
    pub fn metric(&self) -> IntCounterVec {
        self.limited.clone()
    }

    /// The proxies that are believed whom they forward for.
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// The client of a request, at this address.
    pub fn client<B>(&self, request: &Request<B>, address: IpAddr) -> Client {
        let query = request.uri().query().unwrap_or_default();
        let query: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
        let session = query.iter().find(|(name, _)| name == "session_id");
        self.of(address, session.map(|(_, id)| id.as_str()))
    }

    fn of(&self, address: IpAddr, session: Option<&str>) -> Client {
        Client {
            session: session.map(|id| self.hasher.hash_one(id).into()),
            address: match network(address) {
                IpAddr::V4(address) => address.to_bits().into(),
                IpAddr::V6(address) => address.to_bits(),
            },
            is_loopback: address.is_loopback(),
        }
    }

    /// Counts `costs` for a client. `passed` is the number of limits that have let them through before, so that what has to wait
    /// counts once.
    ///
    /// # Errors
    ///
    /// The first limit that is exceeded, and how long until it may not be.
    pub fn check(
        &self,
        client: &Client,
        costs: &[(Kind, usize)],
        passed: &mut usize,
    ) -> Result<(), Exceeded> {
        for limit in &self.limits[*passed..] {
            let cost = costs.iter().find(|(kind, _)| *kind == limit.kind);
            let key = match limit.by {
                "session" => client.session,
                _ => Some(client.address).filter(|_| limit.loopback || !client.is_loopback),
            };
            if let (Some((_, cost)), Some(key)) = (cost, key)
                && let Some(cost) = NonZeroU32::new((*cost).try_into().unwrap_or(u32::MAX))
                && let Ok(Err(until)) = limit.limiter.check_key_n(&key, cost.min(limit.burst))
            {
                return Err(Exceeded {
                    wait: until.wait_time_from(self.clock.now()),
                    kind: limit.kind,
                    by: limit.by,
                });
            }
            *passed += 1;
        }
        Ok(())
    }

    /// Like [`Rates::check`], for what is rejected rather than delayed: the response if a limit is exceeded.
    pub fn reject(&self, client: &Client, kind: Kind, cost: usize) -> Option<Response> {
        let exceeded = self.check(client, &[(kind, cost)], &mut 0).err()?;
        self.count(&exceeded);
        Some(exceeded.response())
    }

    /// Counts what a limit has delayed or rejected.
    pub fn count(&self, exceeded: &Exceeded) {
        let labels = [exceeded.kind.label(), exceeded.by];
        self.limited.with_label_values(&labels).inc();
    }

    /// Drops the state of clients that could send a full burst again, for ever.
    pub async fn prune(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PRUNE).await;
            self.drop_idle();
        }
    }

    fn drop_idle(&self) {
        for limit in &self.limits {
            limit.limiter.retain_recent();
            limit.limiter.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        rates: RateArgs,
    }

    fn rates(options: &[&str]) -> Rates {
        let options = Options::parse_from([&["gateway"], options].concat());
        Rates::new(&options.rates, 1_000).unwrap()
    }

    fn address(rates: &Rates, address: &str) -> Client {
        rates.of(address.parse().unwrap(), None)
    }

    /// How many of a hundred requests are let through at once.
    fn admitted(rates: &Rates, client: &Client) -> usize {
        let all = (0..100).map(|_| rates.reject(client, Kind::Requests, 1));
        all.filter(Option::is_none).count()
    }

    #[test]
    fn one_address_uses_up_its_own_limit_only() {
        let rates = rates(&["--address-requests-per-second", "1"]);
        let (one, other) = (address(&rates, "1.1.1.1"), address(&rates, "2.2.2.2"));
        assert_eq!(admitted(&rates, &one), 1);
        assert_eq!(admitted(&rates, &other), 1);
        let labels = ["requests", "address"];
        assert_eq!(rates.limited.with_label_values(&labels).get(), 198);
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_a_limit() {
        let rates = rates(&["--address-requests-per-second", "1"]);
        assert_eq!(admitted(&rates, &address(&rates, "2001:db8::1")), 1);
        assert_eq!(admitted(&rates, &address(&rates, "2001:db8::2")), 0);
        assert_eq!(admitted(&rates, &address(&rates, "2001:db8:0:1::1")), 1);
    }

    #[test]
    fn loopback_has_no_limit_unless_one_is_set() {
        let default = rates(&[]);
        for _ in 0..10 {
            assert_eq!(admitted(&default, &address(&default, "127.0.0.1")), 100);
        }
        let set = rates(&["--address-requests-per-second", "5"]);
        assert_eq!(admitted(&set, &address(&set, "::1")), 5);
        let none = rates(&["--address-requests-per-second", "0"]);
        assert_eq!(admitted(&none, &address(&none, "1.1.1.1")), 100);
    }

    #[test]
    fn the_largest_frame_passes_the_smallest_limit_and_the_next_one_waits() {
        let rates = rates(&["--session-bytes-per-second", "100"]);
        let client = rates.of(IpAddr::from([127, 0, 0, 1]), Some("a"));
        let mut passed = 0;
        let costs = [(Kind::Frames, 1), (Kind::Bytes, 1_000)];
        assert_eq!(rates.check(&client, &costs, &mut passed), Ok(()));
        let mut passed = 0;
        let exceeded = rates.check(&client, &costs, &mut passed).unwrap_err();
        assert!(exceeded.wait > Duration::from_secs(9), "{exceeded:?}");
        assert!(exceeded.sentence().contains("--session-bytes-per-second"));
    }

    #[test]
    fn the_state_of_idle_clients_is_dropped() {
        let rates = rates(&["--address-requests-per-second", "1000"]);
        for number in 0..10_000_u32 {
            let address = IpAddr::from(std::net::Ipv4Addr::from_bits(1 << 24 | number));
            let client = rates.of(address, None);
            assert!(rates.reject(&client, Kind::Requests, 1).is_none());
        }
        std::thread::sleep(Duration::from_millis(50));
        rates.drop_idle();
        assert!(rates.limits.iter().all(|limit| limit.limiter.is_empty()));
    }
}
