//! One connection, without ever waiting for it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use super::frame::{AROUND, Key, LARGEST, LARGEST_HELLO, Opened, Way, open, seal};
use super::message::Message;

/// A connection's end. What is to be sent waits in `outbox` for the socket to take it; whoever adds to it
/// says nothing twice and no heartbeat while something waits, which bounds it.
pub(super) struct Link {
    stream: TcpStream,
    key: Key,
    way: Way,
    longest: usize,
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
        let (inbox, outbox) = (Vec::new(), Vec::new());
        Ok(Link { stream, key, way, longest: LARGEST_HELLO, sent: 0, got: 0, inbox, outbox, end: None })
    }

    /// Goes on with another key.
    pub(super) fn rekey(&mut self, key: Key) {
        self.key = key;
    }

    /// The other side has shown who it is.
    pub(super) fn trust(&mut self) {
        self.longest = LARGEST;
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
                Ok(n) => self.inbox.extend_from_slice(&part[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
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
