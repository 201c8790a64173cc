//! What names mean, learned from the DNS answers that PUs get.
//!
//! Pure computation, no I/O. An answer is believed only if the same PU asked for it: over the same addresses, ports and
//! protocol, with the same id, name and type ([`Learner`]). What was learned holds as long as the answer says and a while
//! longer ([`Cache`]).

mod cache;
mod frame;
mod learner;
mod message;
mod stream;

pub use cache::Cache;
pub use frame::{Datagram, Part, Parts};
pub use learner::{Conn, Learned, Learner};
pub use message::{Found, Message, Question, read};
pub use stream::Stream;
