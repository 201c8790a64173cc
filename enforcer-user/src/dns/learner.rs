//! Which answers are believed.

use std::collections::{HashMap, VecDeque};

use common::flow::FlowKey;

use super::{Found, Message, Stream, message::Question, read};

/// Whose connection to a resolver, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conn {
    /// The PU that asks.
    pub pu: u32,
    /// The connection, seen from this host.
    pub key: FlowKey,
}

/// What came of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The addresses of a name the PU asked for.
    Name(String, Vec<Found>),
    /// The PU did not ask for it.
    Unasked,
    /// It is no message anything can be learned from.
    Unreadable,
}

/// Remembers what PUs asked, and compares the answers.
#[derive(Debug, Default)]
pub struct Learner {
    asked: HashMap<(Conn, u16), (Question, u64)>,
    /// In the order they were asked.
    order: VecDeque<(Conn, u16, u64)>,
    by_pu: HashMap<u32, usize>,
    streams: HashMap<Conn, Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    questions: Stream,
    answers: Stream,
    /// Unix seconds.
    used: u64,
}

/// Questions a PU may have open; more are answered, but nothing is learned from the answers.
pub const OPEN_MAX: usize = 512;
/// How long an answer is waited for, seconds.
const PATIENCE: u64 = 30;
/// Connections over TCP that are followed.
const STREAMS_MAX: usize = 1024;
/// How long one that says nothing is followed, seconds.
const IDLE: u64 = 120;

impl Learner {
    /// A PU sent a message.
    pub fn question(&mut self, conn: Conn, message: &[u8], now: u64) -> bool {
        self.forget(now);
        let Some(Message::Question(question)) = read(message) else { return false };
        let key = (conn, question.id);
        if !self.asked.contains_key(&key) {
            let open = self.by_pu.entry(conn.pu).or_default();
            if *open >= OPEN_MAX {
                return false;
            }
            *open += 1;
        }
        self.order.push_back((conn, question.id, now));
        self.asked.insert(key, (question, now));
        true
    }

    /// A message came for a PU.
    pub fn answer(&mut self, conn: Conn, message: &[u8], now: u64) -> Learned {
        self.forget(now);
        let Some(Message::Answer(question, found)) = read(message) else { return Learned::Unreadable };
        match self.asked.get(&(conn, question.id)) {
            Some((asked, _)) if *asked == question => {}
            _ => return Learned::Unasked,
        }
        self.close((conn, question.id));
        Learned::Name(host(question.name), found)
    }

    /// A PU sent a segment; whole messages in it are noted. How many were.
    pub fn question_segment(&mut self, conn: Conn, seq: u32, payload: &[u8], now: u64) -> usize {
        let Some(streams) = self.streams(conn, now) else { return 0 };
        let messages = streams.questions.push(seq, payload);
        messages.iter().filter(|message| self.question(conn, message, now)).count()
    }

    /// A segment came for a PU; what the whole messages in it are worth.
    pub fn answer_segment(&mut self, conn: Conn, seq: u32, payload: &[u8], now: u64) -> Vec<Learned> {
        let Some(streams) = self.streams(conn, now) else { return Vec::new() };
        let messages = streams.answers.push(seq, payload);
        messages.iter().map(|message| self.answer(conn, message, now)).collect()
    }

    fn streams(&mut self, conn: Conn, now: u64) -> Option<&mut Streams> {
        if !self.streams.contains_key(&conn) && self.streams.len() >= STREAMS_MAX {
            self.streams.retain(|_, streams| streams.used + IDLE > now);
            if self.streams.len() >= STREAMS_MAX {
                return None;
            }
        }
        let streams = self.streams.entry(conn).or_default();
        if streams.used + IDLE <= now {
            *streams = Streams::default();
        }
        streams.used = now;
        Some(streams)
    }

    fn forget(&mut self, now: u64) {
        while let Some((conn, id, at)) = self.order.front().copied().filter(|(.., at)| at + PATIENCE <= now) {
            self.order.pop_front();
            // Asked again since, it stands further back too.
            if self.asked.get(&(conn, id)).is_some_and(|(_, asked)| *asked == at) {
                self.close((conn, id));
            }
        }
        // Answered questions stay in the order until their time; a flood of them must not.
        if self.order.len() > 4 * self.asked.len() + OPEN_MAX {
            let asked = &self.asked;
            self.order.retain(|(conn, id, at)| asked.get(&(*conn, *id)).is_some_and(|(_, asked)| asked == at));
        }
    }

    fn close(&mut self, key: (Conn, u16)) {
        if self.asked.remove(&key).is_some() {
            if let Some(open) = self.by_pu.get_mut(&key.0.pu) {
                *open -= 1;
                if *open == 0 {
                    self.by_pu.remove(&key.0.pu);
                }
            }
        }
    }
}

/// The host of a name that also tells port and protocol, such as `_8443._https.example.org` (RFC 9460 section 2.3).
fn host(name: String) -> String {
    let mut host = name.as_str();
    while let Some((label, rest)) = host.split_once('.').filter(|(label, _)| label.starts_with('_')) {
        debug_assert!(!label.is_empty());
        host = rest;
    }
    host.to_owned()
}

#[cfg(test)]
#[path = "learner_tests.rs"]
mod tests;
