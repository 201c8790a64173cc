//! Pods as PUs: a real containerd, pods made through CRI.

mod cri;
mod events;
mod front;
#[path = "../issuer/mod.rs"]
mod issuer;
mod kubernetes;
mod pods;
mod stage;
