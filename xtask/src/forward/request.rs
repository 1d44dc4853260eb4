//! What a client has said before anything was answered: kept, so that it can be said to another pod.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A request with a larger body is forwarded, but not repeated.
const LIMIT: usize = 64 * 1024;

#[derive(Default)]
pub struct Request {
    pub bytes: Vec<u8>,
    /// The client says no more; it may still listen.
    pub ended: bool,
    /// The client has had the beginning of an answer.
    pub answered: bool,
}

impl Request {
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= LIMIT
    }

    /// Reads on, if there is room and the client has not said its last; otherwise it never returns.
    pub async fn read(&mut self, client: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        if self.ended || self.is_full() {
            return std::future::pending().await;
        }
        let room = LIMIT - self.bytes.len();
        let read = client.take(room as u64).read_buf(&mut self.bytes).await?;
        self.ended = read == 0;
        Ok(())
    }

    /// Does the work and reads on meanwhile; `None` when the client has gone.
    pub async fn while_reading<T>(
        &mut self,
        client: &mut (impl AsyncRead + Unpin),
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                read = self.read(client) => {
                    if read.is_err() || (self.ended && self.bytes.is_empty()) {
                        return None;
                    }
                }
            }
        }
    }

    /// Whether a pod that may have had it already can have it again: HTTP's methods that change nothing.
    pub fn is_repeatable(&self) -> bool {
        let safe = [&b"GET "[..], b"HEAD "];
        !self.answered
            && !self.is_full()
            && safe.iter().any(|method| self.bytes.starts_with(method))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_comes_while_we_wait_is_kept() {
        let (mut browser, mut client) = tokio::io::duplex(1024);
        let mut request = Request::default();
        let work = async {
            browser.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        };
        assert!(request.while_reading(&mut client, work).await.is_some());
        assert_eq!(request.bytes, b"GET / HTTP/1.1\r\n\r\n");
        assert!(request.is_repeatable());
    }

    #[tokio::test]
    async fn a_client_that_leaves_without_a_word_is_not_waited_for() {
        let (browser, mut client) = tokio::io::duplex(1024);
        drop(browser);
        let mut request = Request::default();
        let work = std::future::pending::<()>();
        assert_eq!(request.while_reading(&mut client, work).await, None);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_kept() {
        let mut client: &[u8] = &[b'x'; LIMIT + 1];
        let mut request = Request::default();
        while !request.is_full() {
            request.read(&mut client).await.unwrap();
        }
        assert_eq!((request.bytes.len(), client.len()), (LIMIT, 1));
        assert!(!request.is_repeatable());
    }

    #[test]
    fn what_may_change_something_is_not_said_twice() {
        for (text, repeatable) in [
            ("GET /events", true),
            ("HEAD /events", true),
            ("OPTIONS /likes", false),
            ("POST /likes", false),
            ("", false),
        ] {
            let request = Request {
                bytes: text.into(),
                ..Request::default()
            };
            assert_eq!(request.is_repeatable(), repeatable, "{text}");
            let answered = Request {
                answered: true,
                ..request
            };
            assert!(!answered.is_repeatable(), "{text}");
        }
    }
}
