//! What a client has sent before the first byte of an answer: kept so that it can be repeated to another pod.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A larger request is forwarded, but not repeated.
const LIMIT: usize = 64 * 1024;

#[derive(Default)]
pub struct Request {
    pub bytes: Vec<u8>,
    /// The client has stopped sending; it may still receive.
    pub ended: bool,
    /// The client has received the beginning of an answer.
    pub answered: bool,
}

impl Request {
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= LIMIT
    }

    /// Reads more, if there is room and the client is still sending; otherwise it never returns.
    pub async fn read(&mut self, client: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        if self.ended || self.is_full() {
            return std::future::pending().await;
        }
        let room = LIMIT - self.bytes.len();
        let read = client.take(room as u64).read_buf(&mut self.bytes).await?;
        self.ended = read == 0;
        Ok(())
    }

    /// Awaits the work while reading; `None` when the client disconnects.
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

    /// Whether it is safe to send it to a pod that may already have received it: HTTP's safe methods.
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
    async fn data_received_while_waiting_is_kept() {
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
    async fn a_client_that_disconnects_without_a_request_ends_the_wait() {
        let (browser, mut client) = tokio::io::duplex(1024);
        drop(browser);
        let mut request = Request::default();
        let work = std::future::pending::<()>();
        assert_eq!(request.while_reading(&mut client, work).await, None);
    }

    #[tokio::test]
    async fn at_most_the_limit_is_kept() {
        let mut client: &[u8] = &[b'x'; LIMIT + 1];
        let mut request = Request::default();
        while !request.is_full() {
            request.read(&mut client).await.unwrap();
        }
        assert_eq!((request.bytes.len(), client.len()), (LIMIT, 1));
        assert!(!request.is_repeatable());
    }

    #[test]
    fn a_request_that_may_have_side_effects_is_not_repeated() {
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
