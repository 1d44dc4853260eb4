//! The document of a session, in pieces.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use herald_events::SessionId;
use serde_json::value::RawValue;
use sqlx::Row as _;

use crate::Reader;
use crate::connect::explain_read;

/// The most events, and about the most bytes, that one query reads ahead of the client.
const PAGE_EVENTS: i64 = 500;
const PAGE_BYTES: usize = 256 * 1024;

/// The next children. Those that were added later belong to later versions.
const CHILDREN: &str = "SELECT timestamp, arrival, body FROM session_children \
    WHERE session = $1 AND (timestamp, arrival) > ($2, $3) AND added <= $4 \
    ORDER BY timestamp, arrival LIMIT $5";

/// A session at one version.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    /// The timestamp of its first start, as it was sent.
    pub start: Option<String>,
    /// The timestamp of its last end, as it was sent.
    pub end: Option<String>,
    pub(crate) number: i64,
    pub(crate) incarnation: i64,
    pub(crate) version: i64,
    pub(crate) reader: Reader,
}

/// Where the next page begins.
struct Page {
    session: Session,
    timestamp: f64,
    arrival: Vec<u8>,
    is_first: bool,
}

impl Session {
    /// Another one whenever the document is another one; for an `ETag`.
    pub fn version(&self) -> String {
        format!("{:016x}-{}", self.incarnation, self.version)
    }

    /// The document as JSON in pieces of at most about 256 KiB and one event. It is that of this version, also while events are
    /// added. No connection is held between two pieces, however slowly they are taken.
    ///
    /// The last item is an error if the database fails, or if the session was deleted meanwhile.
    pub fn into_document(self) -> impl Stream<Item = anyhow::Result<Bytes>> + Send + 'static {
        let head = Bytes::from(self.head());
        let first = Page {
            session: self,
            timestamp: f64::NEG_INFINITY,
            arrival: Vec::new(),
            is_first: true,
        };
        let pages = stream::try_unfold(Some(first), |page| async {
            match page {
                Some(page) => page.read().await.map(Some),
                None => Ok(None),
            }
        });
        stream::once(async { Ok(head) }).chain(pages)
    }

    /// The whole document, for sessions that are known to be small.
    ///
    /// # Errors
    ///
    /// As [`into_document`](Self::into_document).
    pub async fn into_bytes(self) -> anyhow::Result<Vec<u8>> {
        let document = self.into_document();
        let append = |mut whole: Vec<u8>, piece: Bytes| async move {
            whole.extend_from_slice(&piece);
            Ok(whole)
        };
        document.try_fold(Vec::new(), append).await
    }

    fn head(&self) -> String {
        let id = serde_json::to_string(self.id.as_str()).expect("a string can be written as JSON");
        let (start, end) = (self.start.as_deref(), self.end.as_deref());
        format!(
            r#"{{"session_id":{id},"type":"SESSION","start":{},"end":{},"children":["#,
            start.unwrap_or("null"),
            end.unwrap_or("null"),
        )
    }
}

impl Page {
    /// The children of this page, and the next page unless this is the last one.
    async fn read(mut self) -> anyhow::Result<(Bytes, Option<Self>)> {
        let mut text = String::new();
        let mut read = 0;
        let reader = &self.session.reader;
        let failed = |error| explain_read(error, "read a session", &reader.url);
        {
            let mut rows = sqlx::query(CHILDREN)
                .bind(self.session.number)
                .bind(self.timestamp)
                .bind(self.arrival.clone())
                .bind(self.session.version)
                .bind(PAGE_EVENTS)
                .fetch(&reader.pool);
            while let Some(row) = rows.try_next().await.map_err(failed)? {
                self.timestamp = row.try_get("timestamp")?;
                self.arrival = row.try_get("arrival")?;
                if !self.is_first {
                    text.push(',');
                }
                self.is_first = false;
                text.push_str(row.try_get("body")?);
                read += 1;
                if text.len() >= PAGE_BYTES {
                    return Ok((text.into(), Some(self)));
                }
            }
        }
        if read == PAGE_EVENTS {
            return Ok((text.into(), Some(self)));
        }
        let still = sqlx::query("SELECT version FROM session_documents WHERE number = $1")
            .bind(self.session.number)
            .fetch_optional(&reader.pool)
            .await
            .map_err(failed)?;
        anyhow::ensure!(still.is_some(), "the session was deleted while it was read");
        text.push_str("]}");
        Ok((text.into(), None))
    }
}

/// The timestamp of an event, as it was sent.
pub(crate) fn timestamp(event: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        timestamp: &'a RawValue,
    }
    let fields: Fields<'_> = serde_json::from_str(event).expect("only valid events are stored");
    fields.timestamp.get().to_owned()
}

#[cfg(test)]
mod tests {
    use crate::{DatabaseUrl, Name, Reader, Writer};

    use super::*;

    #[tokio::test]
    async fn children_are_read_in_the_order_of_an_index() {
        let name = herald_testing::random_topic("herald-store");
        let file = std::env::temp_dir().join(format!("{name}.db"));
        let url: DatabaseUrl = format!("sqlite://{}", file.display()).parse().unwrap();
        let writer = Writer::open(&url, &Name::default(), None).await.unwrap();
        let reader = Reader::new(&url, &Name::default());
        let explain = format!("EXPLAIN QUERY PLAN {CHILDREN}");
        let plan = sqlx::query(sqlx::AssertSqlSafe(explain))
            .bind(1i64)
            .bind(0.0)
            .bind(Vec::<u8>::new())
            .bind(1i64)
            .bind(1i64)
            .fetch_all(&reader.pool)
            .await
            .unwrap();
        let steps: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
        let step = "SEARCH session_events USING INDEX session_events_in_order (session=? AND (timestamp,arrival)>(?,?))";
        assert_eq!(steps, [step]);
        writer.close().await;
        for suffix in ["", "-wal", "-shm"] {
            _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
    }
}
