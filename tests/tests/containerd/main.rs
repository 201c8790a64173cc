//! Pods as PUs: a real containerd, pods made through CRI.

mod cri;
mod events;
mod front;
mod kubernetes;
mod pods;
mod stage;
