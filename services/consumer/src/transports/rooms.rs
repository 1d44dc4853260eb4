//! Rooms over Socket.IO: the results of windows, to clients that registered the room of an identifier and requested the
//! window.
//!
//! `hub` holds the members of each room, and its last result; `results` reads the topics into it; `request` checks what
//! clients send.

mod hub;
mod request;
mod results;

use std::sync::Arc;

use herald_runtime::http::Principal;
use serde_json::Value as Json;
use socketioxide::extract::{SocketRef, TryData};

pub use self::hub::{Member, Rooms, Sent};
pub use self::results::run;
use super::socketio::{Emitter, cut_reason, end_session, join};
use crate::app::App;
use crate::stream::End;

/// The number of windows. Each is given by its index in every list of the three.
pub const WINDOWS: usize = 3;

/// The labels of the windows in metrics.
pub const LABELS: [&str; WINDOWS] = ["1min", "5min", "10min"];

/// The events by which a client requests a window.
const CONSUME: [&str; WINDOWS] = [
    "consume_1_min_aggregations",
    "consume_5_min_aggregations",
    "consume_10_min_aggregations",
];

/// Makes a socket a member, before it is notified that it is connected, so that no event of it is missed.
pub fn admit(rooms: &Arc<Rooms>, socket: &SocketRef, principal: Principal) {
    let member = Rooms::admit(rooms, principal);
    // The library calls each handler in the order of the client's events, and spawns only the future that it returns.
    for (event, request) in [
        (
            "register_room",
            Member::register as fn(&Arc<Member>, Option<&Json>),
        ),
        ("leave_room", Member::leave),
    ] {
        let member = member.clone();
        socket.on(event, move |TryData(payload): TryData<Json>| {
            request(&member, payload.ok().as_ref());
            std::future::ready(())
        });
    }
    for (window, event) in CONSUME.into_iter().enumerate() {
        let member = member.clone();
        socket.on(event, move || {
            member.consume(window);
            std::future::ready(())
        });
    }
    socket.extensions.insert(Membership(member));
}

/// What a socket's extensions hold.
#[derive(Clone)]
struct Membership(Arc<Member>);

/// The membership of a socket for as long as it is served.
pub struct Serving(Option<Arc<Member>>);

impl Serving {
    /// Waits for what the member is to receive; for ever if there are no rooms. Cancel-safe.
    pub async fn next(&self) -> Vec<Sent> {
        match &self.0 {
            Some(member) => member.next().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(member) = &self.0 {
            member.end();
        }
    }
}

/// The membership that [`admit`] made.
pub fn member(socket: &SocketRef) -> Serving {
    Serving(socket.extensions.get::<Membership>().map(|member| member.0))
}

/// Serves a socket that has nothing but rooms.
pub async fn serve(app: Arc<App>, socket: SocketRef) {
    let member = member(&socket);
    let Some(principal) = socket.extensions.get::<Principal>() else {
        return;
    };
    let Some(disconnected) = join(&app, &socket) else {
        return;
    };
    let permit = principal.permit("read rooms");
    let mut open = match app.metrics.open_rooms(&permit) {
        Ok(open) => open,
        Err(end) => {
            let emitter = Emitter::new(socket.clone(), &app.sessions, 0);
            return end_session(&app, &socket, emitter, &end, "").await;
        }
    };
    let mut drained = std::pin::pin!(app.drain.deadline());
    let mut expired = std::pin::pin!(permit.expired());
    let mut emitter = Emitter::new(socket.clone(), &app.sessions, 0);
    let end = loop {
        tokio::select! {
            biased;
            () = disconnected.cancelled() => break None,
            () = &mut drained => break Some(End::Drain),
            () = &mut expired => break Some(End::Expired),
            results = member.next() => {
                tokio::select! {
                    biased;
                    () = &mut drained => break Some(End::Drain),
                    () = &mut expired => break Some(End::Expired),
                    emitted = emitter.emit_results(results) => if let Err(end) = emitted {
                        break end;
                    }
                }
            }
        }
    };
    let Some(end) = end else {
        open.reason = cut_reason(&app, &socket).unwrap_or(open.reason);
        return;
    };
    open.reason = end.reason();
    end_session(&app, &socket, emitter, &end, "").await;
}
