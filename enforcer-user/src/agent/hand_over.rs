//! Making way for a successor (`enforcer upgrade`).
//!
//! An agent that ends tells the kernel so, which then refuses first contacts at once. One that is followed does not: what the
//! kernel holds meanwhile is the successor's to decide.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::sync::Notify;

use super::Shared;
use crate::admin::{AdminError, Caller, ErrorKind};

/// Whether this agent was asked to make way.
#[derive(Debug, Default)]
pub(super) struct HandOver {
    asked: AtomicBool,
    told: Notify,
}

impl HandOver {
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Waits until it is asked, and until whoever asked has had an answer.
    pub async fn asked(&self) {
        self.told.notified().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes way.
pub(super) fn begin(shared: &Shared, caller: Caller) -> Result<(), AdminError> {
    if caller.uid != 0 {
        return Err(AdminError::new(ErrorKind::Denied, "only root may replace the agent"));
    }
    if shared.trial.left().is_some() {
        let message = "what is in force is on trial: `enforcer confirm` first, or let the time pass";
        return Err(AdminError::new(ErrorKind::Busy, message));
    }
    tracing::info!(pid = ?caller.pid, "asked to make way for another agent");
    shared.hand_over.asked.store(true, Ordering::Release);
    shared.hand_over.told.notify_one();
    Ok(())
}
