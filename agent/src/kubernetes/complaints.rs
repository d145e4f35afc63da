//! What is to be told by Events, until the API server takes it. Bounded: while it is away the newest are dropped.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::ApiPod;

/// The most that wait for the API server.
const MOST: usize = 100;

/// What is wrong, to be told where the user looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Complaint {
    /// A pod's annotation.
    Pod {
        /// Whose.
        pod: ApiPod,
        /// What is wrong and what holds instead.
        text: String,
    },
    /// This node.
    Node {
        /// The Event's reason.
        reason: &'static str,
        /// What is wrong and what to do.
        text: String,
    },
}

/// Those that wait, oldest first.
#[derive(Debug, Default)]
pub struct Complaints {
    waiting: Mutex<VecDeque<Complaint>>,
    added: Notify,
}

impl Complaints {
    /// Adds one, unless too many wait already.
    pub fn push(&self, complaint: Complaint) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST {
            waiting.push_back(complaint);
            self.added.notify_one();
        }
    }

    /// The oldest, if there is one.
    pub fn pop(&self) -> Option<Complaint> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// The oldest, when there is one.
    pub async fn next(&self) -> Complaint {
        loop {
            match self.pop() {
                Some(complaint) => return complaint,
                None => self.added.notified().await,
            }
        }
    }
}
