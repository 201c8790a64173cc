//! DNS over TCP: segments in, messages out.

/// One direction of a connection: puts segments in order and cuts out messages, each with its length before it
/// (RFC 1035 section 4.2.2).
///
/// Holds at most a message and [`EARLY_MAX`] segments that came before their turn. What does not fit is left out, and with
/// it all that follows: nothing is learned from such a connection.
#[derive(Debug, Default)]
pub struct Stream {
    next: Option<u32>,
    ready: Vec<u8>,
    early: Vec<(u32, Vec<u8>)>,
    lost: bool,
}

/// Segments kept that came before their turn.
pub const EARLY_MAX: usize = 16;
/// A sequence number farther off belongs to another connection on the same ports.
const WINDOW: u32 = 1 << 20;
/// A header and nothing else.
const MESSAGE_MIN: usize = 12;

impl Stream {
    /// Takes the payload of a segment; the messages that are complete with it.
    pub fn push(&mut self, seq: u32, payload: &[u8]) -> Vec<Vec<u8>> {
        let next = *self.next.get_or_insert(seq);
        if (seq.wrapping_sub(next) as i32).unsigned_abs() > WINDOW {
            *self = Self { next: Some(seq), ..Self::default() };
        }
        if self.lost {
            return Vec::new();
        }
        if !self.append(seq, payload) {
            let known = self.early.iter().any(|(at, early)| *at == seq && early.len() >= payload.len());
            if !known && self.early.len() == EARLY_MAX {
                self.lost = true;
            } else if !known {
                self.early.push((seq, payload.to_vec()));
            }
        }
        while let Some(at) = self.early.iter().position(|(seq, _)| self.is_due(*seq)) {
            let (seq, payload) = self.early.swap_remove(at);
            self.append(seq, &payload);
        }
        self.messages()
    }

    fn is_due(&self, seq: u32) -> bool {
        self.next.is_some_and(|next| seq.wrapping_sub(next) as i32 <= 0)
    }

    /// Appends what is new of a segment; false if something is missing before it.
    fn append(&mut self, seq: u32, payload: &[u8]) -> bool {
        let Some(next) = self.next.filter(|_| self.is_due(seq)) else { return false };
        let seen = next.wrapping_sub(seq) as usize;
        if let Some(new) = payload.get(seen..) {
            self.ready.extend_from_slice(new);
            self.next = Some(next.wrapping_add(new.len() as u32));
        }
        true
    }

    fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Some(&[high, low]) = self.ready.first_chunk::<2>() {
            let end = 2 + usize::from(u16::from_be_bytes([high, low]));
            if end < 2 + MESSAGE_MIN {
                self.lost = true;
                self.ready = Vec::new();
                break;
            }
            let Some(message) = self.ready.get(2..end) else { break };
            messages.push(message.to_vec());
            self.ready.drain(..end);
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fill: u8, len: u16) -> Vec<u8> {
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.resize(2 + usize::from(len), fill);
        bytes
    }

    #[test]
    fn any_cut_and_order_gives_the_same_messages() {
        let whole = [message(1, 12), message(2, 300), message(3, 40)].concat();
        let expected: Vec<Vec<u8>> = vec![vec![1; 12], vec![2; 300], vec![3; 40]];
        for size in [1, 2, 3, 7, 50, 400] {
            let mut stream = Stream::default();
            let start = u32::MAX - 100;
            let mut got = Vec::new();
            let pieces: Vec<(u32, &[u8])> = whole
                .chunks(size)
                .enumerate()
                .map(|(at, piece)| (start.wrapping_add((at * size) as u32), piece))
                .collect();
            got.extend(stream.push(pieces[0].0, pieces[0].1));
            // Pairs swapped, and each sent twice.
            for pair in pieces[1..].chunks(2) {
                for (seq, piece) in pair.iter().rev().chain(pair) {
                    got.extend(stream.push(*seq, piece));
                }
            }
            assert_eq!(got, expected, "{size}");
        }
    }

    #[test]
    fn what_cannot_be_put_together_ends_the_learning_not_the_memory() {
        let mut stream = Stream::default();
        assert!(stream.push(0, &message(1, 5)).is_empty());
        assert!(stream.push(7, &message(1, 20)).is_empty(), "no message is that short");
        let mut gap = Stream::default();
        gap.push(0, &[0]);
        for n in 1..100u32 {
            assert!(gap.push(n * 10, &[0; 5]).is_empty());
        }
        assert!(gap.early.len() <= EARLY_MAX);
        // Another connection on the same ports.
        assert_eq!(gap.push(1 << 30, &message(4, 12)), [vec![4; 12]]);
    }
}
