//! Frames: what goes over a connection, and how one is told from what a stranger sends.
//!
//! A frame is a length and a counter (little endian, 4 and 8 bytes), the payload, and a keyed BLAKE3 hash
//! over the direction, the counter, the length and the payload. A payload is looked at only after its hash
//! was found right, so nothing that a stranger sends is ever parsed beyond its length.

/// The longest payload.
pub(super) const LARGEST: usize = 64 * 1024;
/// The longest payload of who has not yet shown that it knows the secret.
pub(super) const LARGEST_HELLO: usize = 1024;
/// What a frame is longer than its payload.
pub(super) const AROUND: usize = HEAD + MAC;

const HEAD: usize = 12;
const MAC: usize = 32;

/// A challenge, or what answers one.
pub(super) type Nonce = [u8; 32];

/// What frames are signed with.
#[derive(Clone)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// The job's secret itself.
    pub(super) fn new(secret: [u8; 32]) -> Self {
        Key(secret)
    }

    fn derived(&self, purpose: &'static str, parts: &[&[u8]]) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        // The purposes are of one length each and differ, so no two inputs are the same.
        hasher.update(purpose.as_bytes());
        for part in parts {
            hasher.update(part);
        }
        Key(*hasher.finalize().as_bytes())
    }

    /// For the hub's challenge.
    pub(super) fn of_challenge(&self) -> Key {
        self.derived("challenge key", &[])
    }

    /// For the answer to a challenge: an answer to another one does not fit.
    pub(super) fn of_hello(&self, challenge: &Nonce) -> Key {
        self.derived("hello key....", &[challenge])
    }

    /// For all that follows; both sides have put in something fresh.
    pub(super) fn of_session(&self, challenge: &Nonce, answer: &Nonce, rank: u32) -> Key {
        self.derived("session key..", &[challenge, answer, &rank.to_le_bytes()])
    }

    /// The challenge number `count` of a hub; no two are alike.
    pub(super) fn challenge(&self, count: u64) -> Nonce {
        self.derived("a challenge..", &[&count.to_le_bytes()]).0
    }

    fn sign(&self, way: Way, head: &[u8], payload: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[way as u8]).update(head).update(payload);
        hasher.finalize()
    }
}

/// The direction of a frame: none is taken for one of the other direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Way {
    ToHub,
    FromHub,
}

impl Way {
    pub(super) fn back(self) -> Way {
        match self {
            Way::ToHub => Way::FromHub,
            Way::FromHub => Way::ToHub,
        }
    }
}

/// Appends a frame to `out`. A payload that is too long is a mistake of this side: it is left out, and the
/// answer is false.
pub(super) fn seal(key: &Key, way: Way, counter: u64, payload: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(len) = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= LARGEST) else {
        return false;
    };
    let start = out.len();
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&counter.to_le_bytes());
    let mac = key.sign(way, &out[start..], payload);
    out.extend_from_slice(payload);
    out.extend_from_slice(mac.as_bytes());
    true
}

/// What stands at the start of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened<'a> {
    /// The beginning of a frame.
    Partial,
    /// A frame, with the bytes that it takes.
    Frame { payload: &'a [u8], used: usize },
    /// Nothing that the other side can have sent now.
    Bad,
}

/// Looks for the frame numbered `counter` at the start of `bytes`.
pub(super) fn open<'a>(key: &Key, way: Way, counter: u64, longest: usize, bytes: &'a [u8]) -> Opened<'a> {
    let Some((len, _)) = bytes.split_first_chunk::<4>() else {
        return Opened::Partial;
    };
    let len = u32::from_le_bytes(*len) as usize;
    if len > longest {
        return Opened::Bad;
    }
    let used = len + AROUND;
    if bytes.len() < used {
        return Opened::Partial;
    }
    let (head, rest) = bytes.split_at(HEAD);
    let (payload, rest) = rest.split_at(len);
    let mac: Option<[u8; MAC]> = rest.first_chunk().copied();
    // The comparison takes the same time wherever the first difference is.
    let right = mac.is_some_and(|mac| key.sign(way, head, payload) == blake3::Hash::from_bytes(mac));
    if right && head[4..] == counter.to_le_bytes() { Opened::Frame { payload, used } } else { Opened::Bad }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> Key {
        Key::new([7; 32])
    }

    fn frame(counter: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(seal(&key(), Way::ToHub, counter, payload, &mut out));
        out
    }

    #[test]
    fn a_frame_comes_back_and_its_beginning_is_none() {
        for payload in [&b""[..], b"x", &[9; LARGEST]] {
            let mut bytes = frame(3, payload);
            let used = bytes.len();
            bytes.extend_from_slice(b"the next");
            let whole = open(&key(), Way::ToHub, 3, LARGEST, &bytes);
            assert_eq!(whole, Opened::Frame { payload, used });
            for cut in [0, 3, 4, 11, used - 1] {
                let part = open(&key(), Way::ToHub, 3, LARGEST, &bytes[..cut.min(used - 1)]);
                assert_eq!(part, Opened::Partial);
            }
        }
    }

    #[test]
    fn another_key_direction_counter_or_length_is_bad() {
        let bytes = frame(3, b"hello");
        let open = |key: &Key, way, counter, longest| open(key, way, counter, longest, &bytes);
        assert_eq!(open(&Key::new([8; 32]), Way::ToHub, 3, LARGEST), Opened::Bad);
        assert_eq!(open(&key(), Way::FromHub, 3, LARGEST), Opened::Bad);
        assert_eq!(open(&key(), Way::ToHub, 2, LARGEST), Opened::Bad);
        assert_eq!(open(&key(), Way::ToHub, 4, LARGEST), Opened::Bad);
        assert_eq!(open(&key(), Way::ToHub, 3, 4), Opened::Bad);
        assert!(!seal(&key(), Way::ToHub, 0, &vec![0; LARGEST + 1], &mut Vec::new()));
    }

    #[test]
    fn a_huge_length_is_bad_before_anything_else_has_come() {
        assert_eq!(open(&key(), Way::ToHub, 0, LARGEST, &u32::MAX.to_le_bytes()), Opened::Bad);
    }

    #[test]
    fn keys_differ_by_purpose_and_by_what_went_in() {
        let (a, b) = ([1; 32], [2; 32]);
        let keys = [
            key(),
            key().of_challenge(),
            key().of_hello(&a),
            key().of_hello(&b),
            key().of_session(&a, &b, 1),
            key().of_session(&b, &a, 1),
            key().of_session(&a, &b, 2),
            Key::new(key().challenge(0)),
            Key::new(key().challenge(1)),
        ];
        for (i, left) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|right| right.0 != left.0));
        }
    }

    proptest! {
        #[test]
        fn no_change_of_a_bit_goes_unseen(payload in proptest::collection::vec(any::<u8>(), 0..100), at: u16) {
            let mut bytes = frame(1, &payload);
            let bit = usize::from(at) % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let opened = open(&key(), Way::ToHub, 1, LARGEST, &bytes);
            // A longer length makes a frame that never becomes whole.
            let is_frame = matches!(opened, Opened::Frame { .. });
            prop_assert!(!is_frame);
        }

        #[test]
        fn random_bytes_are_no_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let is_frame = matches!(open(&key(), Way::ToHub, 0, LARGEST, &bytes), Opened::Frame { .. });
            prop_assert!(!is_frame);
        }
    }
}
