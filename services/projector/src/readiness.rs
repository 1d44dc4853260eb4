//! The readiness of a process with several parts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use herald_runtime::Readiness;

/// The parts of a process, which is ready once all of them are.
#[derive(Clone)]
pub struct Parts {
    readiness: Readiness,
    /// Why each part is not ready.
    unready: Arc<Mutex<BTreeMap<String, String>>>,
}

/// One of them. It is not ready at first.
#[derive(Clone)]
pub struct Part {
    name: String,
    parts: Parts,
}

impl Parts {
    pub fn new(readiness: Readiness) -> Self {
        Self {
            readiness,
            unready: Arc::default(),
        }
    }

    /// Another part.
    pub fn part(&self, name: &str) -> Part {
        let part = Part {
            name: name.to_owned(),
            parts: self.clone(),
        };
        part.not_ready("starting");
        part
    }
}

impl Part {
    /// Ready from now on.
    pub fn ready(&self) {
        self.set(None);
    }

    /// Not ready from now on, for this reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        let unready = &self.parts.unready;
        let mut unready = unready.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => unready.insert(self.name.clone(), reason),
            None => unready.remove(&self.name),
        };
        match unready.first_key_value() {
            Some((name, reason)) => self.parts.readiness.not_ready(format!("{name}: {reason}")),
            None => self.parts.readiness.ready(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_while_all_of_its_parts_are() {
        let readiness = Readiness::new();
        let parts = Parts::new(readiness.clone());
        let (one, two) = (parts.part("one"), parts.part("two"));
        one.ready();
        assert!(!readiness.is_ready());
        two.ready();
        assert!(readiness.is_ready());
        one.not_ready("a reason");
        assert!(!readiness.is_ready());
    }
}
