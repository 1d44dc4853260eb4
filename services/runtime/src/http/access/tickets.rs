//! Tickets: what a client sends in a URL that can send its token in no header, such as an `EventSource` or a WebSocket of a browser.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a ticket is valid.
pub const LIFETIME: Duration = Duration::from_secs(30);

/// The bytes of the tokens that valid tickets stand for, in all and for one principal.
const MAX_BYTES: usize = 8 << 20;
const MAX_BYTES_EACH: usize = 256 << 10;

/// The tickets that were issued and not used. Each is known to this process alone.
#[derive(Clone, Debug, Default)]
pub struct Tickets(Arc<Mutex<Issued>>);

#[derive(Debug, Default)]
struct Issued {
    tickets: HashMap<String, Ticket>,
    bytes: usize,
}

#[derive(Debug)]
struct Ticket {
    token: String,
    principal: Option<Arc<str>>,
    issued: Instant,
}

impl Tickets {
    /// A ticket that stands for a token; `None` if there are too many.
    pub fn issue(&self, token: &str, principal: Option<Arc<str>>) -> Option<String> {
        let mut issued = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        issued.expire();
        let own = issued.tickets.values();
        let own = own.filter(|ticket| ticket.principal == principal);
        let own: usize = own.map(|ticket| ticket.token.len()).sum();
        if own + token.len() > MAX_BYTES_EACH || issued.bytes + token.len() > MAX_BYTES {
            return None;
        }
        let id = format!("{:032x}", rand::random::<u128>());
        let ticket = Ticket {
            token: token.to_owned(),
            principal,
            issued: Instant::now(),
        };
        issued.bytes += token.len();
        issued.tickets.insert(id.clone(), ticket);
        Some(id)
    }

    /// The token of a ticket, once, while it is valid.
    pub fn redeem(&self, id: &str) -> Option<String> {
        let mut issued = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        issued.expire();
        let ticket = issued.tickets.remove(id)?;
        issued.bytes -= ticket.token.len();
        Some(ticket.token)
    }
}

impl Issued {
    fn expire(&mut self) {
        let bytes = &mut self.bytes;
        self.tickets.retain(|_, ticket| {
            let is_valid = ticket.issued.elapsed() < LIFETIME;
            if !is_valid {
                *bytes -= ticket.token.len();
            }
            is_valid
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_stands_for_its_token_once() {
        let tickets = Tickets::default();
        let [first, second] = [(); 2].map(|()| tickets.issue("token", None).unwrap());
        assert_ne!(first, second);
        assert_eq!(first.len(), 32);
        assert_eq!(tickets.redeem(&first).as_deref(), Some("token"));
        assert_eq!(tickets.redeem(&first), None);
        assert_eq!(tickets.redeem("token"), None);
        assert_eq!(tickets.redeem(&second).as_deref(), Some("token"));
        assert_eq!(tickets.0.lock().unwrap().bytes, 0);
    }

    #[test]
    fn a_ticket_expires() {
        let tickets = Tickets::default();
        let id = tickets.issue("token", None).unwrap();
        let mut issued = tickets.0.lock().unwrap();
        let ticket = issued.tickets.get_mut(&id).unwrap();
        ticket.issued = Instant::now().checked_sub(LIFETIME).unwrap();
        drop(issued);
        assert_eq!(tickets.redeem(&id), None);
        assert_eq!(tickets.0.lock().unwrap().bytes, 0);
    }

    #[test]
    fn one_principal_cannot_use_up_the_tickets_of_others() {
        let tickets = Tickets::default();
        let token = "a".repeat(8 << 10);
        let ada = Some(Arc::from("ada"));
        let many = (0..).take_while(|_| tickets.issue(&token, ada.clone()).is_some());
        assert_eq!(many.count(), MAX_BYTES_EACH / token.len());
        assert!(tickets.issue(&token, Some(Arc::from("bob"))).is_some());
    }
}
