//! Mutual authentication is real: whatever a man in the middle, a stranger or a PU itself does to a handshake ends with
//! its own reason at the right end, and the listener never notices.

mod credentials;
mod downgrade;
mod forgery;
mod replay;
mod stage;
mod tampering;
