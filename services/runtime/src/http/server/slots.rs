//! How many connections are open, in total and by address, and how many may be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;

use super::Limits;
use crate::http::network;

/// Connections over the cap that receive a response rather than wait.
const ANSWERED_OVER_CAP: usize = 256;

/// Connections of one address over its cap that receive a response rather than be closed at once.
const ANSWERED_OVER_ADDRESS: usize = 16;

/// The slots of a listener.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    /// 0 is no limit.
    max_per_address: usize,
    taken: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    gauge: IntGauge,
}

impl Slots {
    pub fn new(limits: &Limits, gauge: IntGauge) -> Self {
        Self {
            max: limits.connections,
            max_per_address: limits.per_address,
            taken: AtomicUsize::new(0),
            by_address: Mutex::default(),
            gauge,
        }
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether not even a response fits.
    pub fn are_exhausted(&self) -> bool {
        self.taken() >= self.max + ANSWERED_OVER_CAP
    }

    /// Whether a slot of this address is over a cap now.
    pub fn is_over(&self, address: IpAddr) -> bool {
        let of_address = || self.lock().get(&network(address)).copied().unwrap_or(0);
        self.taken() > self.max || self.max_per_address > 0 && of_address() > self.max_per_address
    }

    pub fn take(self: &Arc<Self>, address: IpAddr) -> Slot {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        self.gauge.inc();
        let mut slot = Slot {
            slots: self.clone(),
            address: None,
            is_over: taken > self.max,
            is_far_over: false,
        };
        if self.max_per_address > 0 {
            let address = network(address);
            let mut by_address = self.lock();
            let of_address = by_address.entry(address).or_default();
            *of_address += 1;
            slot.address = Some(address);
            slot.is_over |= *of_address > self.max_per_address;
            slot.is_far_over = *of_address > self.max_per_address + ANSWERED_OVER_ADDRESS;
        }
        slot
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of a connection; or over HTTP/2, of a request in progress beside another one of its connection.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    address: Option<IpAddr>,
    /// Whether it was over a cap when it was taken.
    pub is_over: bool,
    /// Whether its address had so many that it should not even be answered.
    pub is_far_over: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.taken.fetch_sub(1, Ordering::Relaxed);
        self.slots.gauge.dec();
        let Some(address) = self.address else { return };
        let mut by_address = self.slots.lock();
        if let Some(of_address) = by_address.get_mut(&address) {
            *of_address -= 1;
            if *of_address == 0 {
                by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn slots(connections: usize, per_address: usize) -> Arc<Slots> {
        let limits = Limits::new(connections, per_address, Duration::from_secs(75));
        Arc::new(Slots::new(&limits, IntGauge::new("a", "b").unwrap()))
    }

    fn taken(slots: &Arc<Slots>, address: &str, count: usize) -> Vec<Slot> {
        let address = address.parse().unwrap();
        (0..count).map(|_| slots.take(address)).collect()
    }

    #[test]
    fn an_address_over_its_cap_leaves_the_others_alone() {
        let slots = slots(1_000, 2);
        let many = taken(&slots, "1.1.1.1", 20);
        let over: Vec<bool> = many.iter().map(|slot| slot.is_over).collect();
        assert_eq!(over[..3], [false, false, true]);
        assert_eq!(many.iter().filter(|slot| slot.is_far_over).count(), 2);
        assert!(!taken(&slots, "2.2.2.2", 1)[0].is_over);
        assert!(slots.is_over("::ffff:1.1.1.1".parse().unwrap()));
        drop(many);
        assert!(!taken(&slots, "1.1.1.1", 1)[0].is_over);
        assert_eq!((slots.taken(), slots.lock().len()), (0, 0));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_a_cap() {
        let slots = slots(1_000, 1);
        let _first = taken(&slots, "2001:db8::1", 1);
        assert!(taken(&slots, "2001:db8::2", 1)[0].is_over);
        assert!(!taken(&slots, "2001:db8:0:1::1", 1)[0].is_over);
    }

    #[test]
    fn without_a_cap_an_address_may_have_all() {
        let slots = slots(100, 0);
        let all = taken(&slots, "1.1.1.1", 101);
        assert!(!all[99].is_over && all[100].is_over && !all[100].is_far_over);
        assert_eq!(slots.lock().len(), 0);
    }
}
