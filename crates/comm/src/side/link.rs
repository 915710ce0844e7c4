//! One connection, without ever waiting for it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::frame::{AROUND, Key, LARGEST, LARGEST_HELLO, Opened, Way, open, seal};
use super::message::Message;

/// A connection's end. What is to be sent waits in `outbox` for the socket to take it; whoever adds to it
/// says nothing twice and no heartbeat while something waits, which bounds it.
pub(super) struct Link {
    stream: TcpStream,
    key: Key,
    way: Way,
    longest: usize,
    /// Reading waits for something to come; see [`Link::lean`].
    waits: bool,
    sent: u64,
    got: u64,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    end: Option<String>,
}

impl Link {
    /// `way` is the direction of what this side sends. Until [`Link::trust`] payloads must be short.
    pub(super) fn new(stream: TcpStream, key: Key, way: Way) -> io::Result<Link> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Link {
            stream,
            key,
            way,
            longest: LARGEST_HELLO,
            waits: false,
            sent: 0,
            got: 0,
            inbox: Vec::new(),
            outbox: Vec::new(),
            end: None,
        })
    }

    /// Goes on with another key.
    pub(super) fn rekey(&mut self, key: Key) {
        self.key = key;
    }

    /// The other side has shown who it is.
    pub(super) fn trust(&mut self) {
        self.longest = LARGEST;
    }

    /// From now on [`Link::fill`] waits so long for something to come, for who has nothing else to do; or no
    /// longer does.
    pub(super) fn lean(&mut self, most: Option<Duration>) -> io::Result<()> {
        self.waits = most.is_some();
        self.stream.set_read_timeout(most)?;
        self.stream.set_nonblocking(most.is_none())
    }

    /// Puts a payload into the outbox.
    pub(super) fn send(&mut self, payload: &[u8]) {
        if seal(&self.key, self.way, self.sent, payload, &mut self.outbox) {
            self.sent += 1;
        }
    }

    pub(super) fn tell(&mut self, message: &Message) {
        // Only maps with strange keys and failing writers make this fail.
        if let Ok(payload) = serde_json::to_vec(message) {
            self.send(&payload);
        }
    }

    /// Whether all that was put into the outbox is on its way, or never will be.
    pub(super) fn is_flushed(&self) -> bool {
        self.outbox.is_empty() || self.end.is_some()
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) {
        while !self.is_flushed() {
            match self.stream.write(&self.outbox) {
                Ok(0) => break,
                Ok(n) => drop(self.outbox.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // What has come in before is still to be read: reading finds the end.
                Err(_) => self.outbox.clear(),
            }
        }
    }

    /// Reads what has come, at most one frame of the greatest length.
    pub(super) fn fill(&mut self) {
        let room = self.longest + AROUND;
        let mut part = [0; 4096];
        while self.end.is_none() && self.inbox.len() < room {
            let most = part.len().min(room - self.inbox.len());
            match self.stream.read(&mut part[..most]) {
                Ok(0) => self.end = Some("its connection closed".into()),
                Ok(n) => {
                    self.inbox.extend_from_slice(&part[..n]);
                    if self.waits {
                        break;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => {
                    self.end = Some("its connection closed".into());
                }
                Err(e) => self.end = Some(format!("its connection failed ({e})")),
            }
        }
    }

    /// The next payload that has come.
    pub(super) fn payload(&mut self) -> Option<Vec<u8>> {
        match open(&self.key, self.way.back(), self.got, self.longest, &self.inbox) {
            Opened::Partial => None,
            Opened::Frame { payload, used } => {
                let payload = payload.to_vec();
                self.inbox.drain(..used);
                self.got += 1;
                Some(payload)
            }
            Opened::Bad => self.refuse(),
        }
    }

    /// The next message that has come.
    pub(super) fn message(&mut self) -> Option<Message> {
        let payload = self.payload()?;
        serde_json::from_slice(&payload).ok().or_else(|| self.refuse())
    }

    fn refuse<T>(&mut self) -> Option<T> {
        self.inbox.clear();
        self.end = Some("its connection brought what no rank of this job sends".into());
        None
    }

    /// Why nothing more will come. To be asked when [`Link::payload`] has no more.
    pub(super) fn end(&self) -> Option<&str> {
        self.end.as_deref()
    }

    /// Says that nothing more will be sent, once all is sent.
    pub(super) fn shut(&mut self) {
        // It may be closed from the other side.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// Brings all that is said to its receivers and waits for them to close, at most as long as `more` says.
pub(super) fn part_from(links: &mut [&mut Link], mut more: impl FnMut() -> bool) {
    let mut shut = vec![false; links.len()];
    loop {
        for (link, shut) in links.iter_mut().zip(&mut shut) {
            link.flush();
            if link.is_flushed() && !*shut {
                link.shut();
                *shut = true;
            }
            // Unread bytes would make the system reset the connection, and what was sent could be lost.
            link.fill();
            link.inbox.clear();
        }
        if links.iter().all(|l| l.end().is_some()) || !more() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::super::frame::Key;
    use super::*;

    fn pair() -> (Link, Link) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let link = |stream, way| Link::new(stream, Key::new([3; 32]), way).unwrap();
        (link(near, Way::ToHub), link(far, Way::FromHub))
    }

    fn next(link: &mut Link) -> Option<Vec<u8>> {
        let since = Instant::now();
        loop {
            link.fill();
            let payload = link.payload();
            if payload.is_some() || link.end().is_some() || since.elapsed() > Duration::from_secs(10) {
                return payload;
            }
        }
    }

    #[test]
    fn a_peer_that_does_not_read_holds_up_nobody() {
        let (mut near, mut far) = pair();
        far.trust();
        let payload = vec![7; LARGEST];
        let since = Instant::now();
        let mut sent = 0;
        // The system takes some megabytes.
        while near.is_flushed() {
            near.send(&payload);
            near.flush();
            sent += 1;
        }
        for _ in 0..1000 {
            near.flush();
        }
        assert!(!near.is_flushed() && since.elapsed() < Duration::from_secs(10));
        // When it reads again, nothing is lost.
        for _ in 0..sent {
            far.fill();
            let got = loop {
                if let Some(got) = far.payload() {
                    break got;
                }
                near.flush();
                far.fill();
                assert_eq!(far.end(), None);
            };
            assert_eq!(got, payload);
        }
        assert!(near.is_flushed());
    }

    #[test]
    fn what_came_before_the_end_is_read_before_the_end() {
        let (mut near, mut far) = pair();
        near.send(b"first");
        near.send(b"last");
        near.flush();
        drop(near);
        assert_eq!(next(&mut far).as_deref(), Some(&b"first"[..]));
        assert_eq!(next(&mut far).as_deref(), Some(&b"last"[..]));
        assert_eq!(next(&mut far), None);
        assert_eq!(far.end(), Some("its connection closed"));
        // Sending into it fails in silence; reading has found the end.
        far.send(b"nobody");
        far.flush();
        assert!(far.is_flushed());
    }

    #[test]
    fn what_was_said_under_another_key_ends_the_connection() {
        let (mut near, mut far) = pair();
        near.rekey(Key::new([4; 32]));
        near.send(b"hello");
        near.flush();
        assert_eq!(next(&mut far), None);
        assert!(far.end().unwrap().contains("what no rank of this job sends"));
        // So does what is signed, but no message.
        let (mut near, mut far) = pair();
        near.send(b"hello");
        near.flush();
        while far.end().is_none() {
            far.fill();
            assert!(far.message().is_none());
        }
    }
}
