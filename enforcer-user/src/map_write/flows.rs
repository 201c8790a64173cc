//! `FLOWS`: how the agent enters, changes and cuts connections.

use common::flow::{CUT, Flow, FlowKey};

use super::{MapWriteError, Table};

impl Table<FlowKey, Flow> {
    /// Cuts a live flow for `reason`: the next packet of either end is answered with a reset. Whether it was cut
    /// just now; `None` if it is not there.
    ///
    /// The kernel counts on while this reads and writes, so a few packets may be missing from the final counts.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn cut(&self, key: &FlowKey, reason: common::drop_reason::Reason) -> Result<Option<bool>, MapWriteError> {
        match self.get(key)? {
            Some(flow) if flow.state != CUT => {
                let there = self.replace(key, &Flow { state: CUT, reason: reason as u16, ..flow })?;
                Ok(there.then_some(true))
            }
            Some(_) => Ok(Some(false)),
            None => Ok(None),
        }
    }
}
