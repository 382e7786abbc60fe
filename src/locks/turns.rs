//! Whose turn it is within this process: who wants a key first contends for it first.
//!
//! # Guarantees
//! Of all that want one key, one contends at a time, in the order in which they came. So waiting
//! costs Consul nothing, and one session that all of them share never holds a key twice.
//! # Not guaranteed
//! Any order among processes: they race for a key that becomes free.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::names::Key;

/// The queues of all keys.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Key, Weak<tokio::sync::Mutex<()>>>>);

/// It is one's turn until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Turns {
    /// Waits for one's turn. Cancel-safe: whoever leaves the queue holds up nobody.
    pub(super) async fn wait(&self, key: &Key) -> Turn {
        // Tokio's mutex is fair.
        Turn { _guard: self.queue(key).lock_owned().await }
    }

    /// One's turn, if nobody else of this process has it.
    pub(super) fn take(&self, key: &Key) -> Option<Turn> {
        self.queue(key).try_lock_owned().ok().map(|guard| Turn { _guard: guard })
    }

    fn queue(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        let mut queues = self.0.lock();
        if let Some(queue) = queues.get(key).and_then(Weak::upgrade) {
            return queue;
        }
        // Nobody waits in those that are gone. Cheap enough once in a while.
        if queues.len() == queues.capacity() {
            queues.retain(|_, queue| queue.strong_count() > 0);
        }
        let queue = Arc::default();
        queues.insert(key.clone(), Arc::downgrade(&queue));
        queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_come_in_the_order_of_asking_and_keys_do_not_hold_one_another_up() {
        let turns = Turns::default();
        let (a, b) = (Key::new("a").unwrap(), Key::new("b").unwrap());
        let first = turns.wait(&a).await;
        assert!(turns.take(&a).is_none());
        drop(turns.wait(&b).await);
        let order = Mutex::new(Vec::new());
        let next = async |name| {
            let _turn = turns.wait(&a).await;
            order.lock().push(name);
        };
        let end = async { drop(first) };
        tokio::join!(biased; next(2), next(3), end);
        assert_eq!(*order.lock(), [2, 3]);
        assert!(turns.take(&a).is_some());
    }

    #[tokio::test]
    async fn queues_of_keys_that_nobody_wants_are_forgotten() {
        let turns = Turns::default();
        for number in 0..10_000 {
            let _turn = turns.take(&Key::new(&format!("k{number}")).unwrap()).unwrap();
        }
        assert!(turns.0.lock().len() < 100);
    }
}
