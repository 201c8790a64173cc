//! Workloads: where PUs come from.

pub mod adopt;
