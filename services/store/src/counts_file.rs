//! Counts in a file of SQLite that belongs to others, with the positions in a second file beside it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::sync::Mutex;

use crate::{Advance, Applied, Batch, Counted, CountsState, Position, Summary};

/// How long a commit waits for readers of the file, which hold it for a few seconds at most.
const BUSY: Duration = Duration::from_secs(30);

/// The only table of the file; its readers depend on it.
const TABLE: &str = r#"CREATE TABLE IF NOT EXISTS "aggregated" ("food" TEXT, "count" INTEGER, PRIMARY KEY("food"))"#;

const ADD: &str = r#"INSERT INTO main."aggregated" ("food", "count") VALUES ($1, $2)
    ON CONFLICT ("food") DO UPDATE SET "count" = "count" + excluded."count""#;

const OFFSETS: &str = "
    CREATE TABLE IF NOT EXISTS offsets.file (path TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS offsets.positions (
        topic TEXT NOT NULL,
        partition BIGINT NOT NULL,
        next BIGINT NOT NULL,
        fingerprint BIGINT,
        record_time BIGINT NOT NULL,
        epoch BIGINT NOT NULL,
        -- Where counting began.
        begun BIGINT NOT NULL,
        PRIMARY KEY (topic, partition)
    );";

/// A file `db.sqlite` with the single table `aggregated(food, count)`, which other programs read at any time, and
/// `db.sqlite-offsets` with the positions. Both are changed in one transaction, which is atomic over the two files as long as every
/// program opens them at the same absolute path and may write to their folder: after a crash, whoever opens one first completes or
/// undoes what was begun.
pub struct CountsFile {
    path: PathBuf,
    connection: Mutex<SqliteConnection>,
    /// No other process counts into the file while it is locked.
    _lock: File,
}

impl CountsFile {
    /// Opens the file, or creates it with its table. A file with counts but without a position is continued: see
    /// [`is_continued`](Self::is_continued).
    ///
    /// # Errors
    ///
    /// One sentence for the user: another process counts into the file, it is at another path than before, it has another table,
    /// or it cannot be written.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let folder = folder.canonicalize().with_context(|| {
            format!(
                "the folder of {shown} cannot be opened; create it, or correct --counts-database"
            )
        })?;
        let name = path
            .file_name()
            .with_context(|| format!("{shown} is not the path of a file"))?;
        let path = folder.join(name);
        let lock = lock(&beside(&path, "-lock"))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .busy_timeout(BUSY);
        let opened = async {
            let mut connection = SqliteConnection::connect_with(&options).await?;
            let offsets = beside(&path, "-offsets");
            let attached =
                sqlx::query("ATTACH DATABASE $1 AS offsets").bind(offsets.display().to_string());
            attached.execute(&mut connection).await?;
            prepare(&mut connection, &path).await?;
            anyhow::Ok(connection)
        };
        let connection = opened
            .await
            .with_context(|| format!("cannot count into {shown}"))?;
        Ok(Self {
            path,
            connection: Mutex::new(connection),
            _lock: lock,
        })
    }

    /// As [`Writer::position`](crate::Writer::position).
    pub async fn position(&self, topic: &str, partition: i32) -> anyhow::Result<Option<Position>> {
        let mut connection = self.connection.lock().await;
        let select = "SELECT next, fingerprint, record_time, epoch FROM offsets.positions WHERE topic = $1 AND partition = $2";
        let row = sqlx::query(select)
            .bind(topic)
            .bind(i64::from(partition))
            .fetch_optional(&mut *connection)
            .await?;
        row.as_ref().map(position).transpose()
    }

    /// Whether the file has counts, but no position for this topic: it was made by another program, which has read the topic up to
    /// its end.
    pub async fn is_continued(&self, topic: &str) -> anyhow::Result<bool> {
        let mut connection = self.connection.lock().await;
        let select = r#"SELECT EXISTS (SELECT 1 FROM main."aggregated") AND NOT EXISTS (SELECT 1 FROM offsets.positions WHERE topic = $1) AS continued"#;
        let row = sqlx::query(select)
            .bind(topic)
            .fetch_one(&mut *connection)
            .await?;
        Ok(row.try_get::<i64, _>("continued")? == 1)
    }

    /// As [`Writer::begin`](crate::Writer::begin).
    pub async fn begin(
        &self,
        topic: &str,
        partition: i32,
        position: Position,
    ) -> anyhow::Result<()> {
        let mut connection = self.connection.lock().await;
        sqlx::query(
            "INSERT INTO offsets.positions (topic, partition, next, fingerprint, record_time, epoch, begun) \
             VALUES ($1, $2, $3, $4, $5, $6, $3) ON CONFLICT DO NOTHING",
        )
        .bind(topic)
        .bind(i64::from(partition))
        .bind(position.next)
        .bind(position.fingerprint.map(i64::from))
        .bind(position.record_time)
        .bind(i64::from(position.epoch))
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    /// All counts of a file with the positions in this topic that they were computed from. It may be counted into meanwhile.
    ///
    /// # Errors
    ///
    /// If there is no such file, or it cannot be read.
    pub async fn read(path: &Path, topic: &str) -> anyhow::Result<CountsState> {
        let read = async {
            let path = path.canonicalize()?;
            let options = SqliteConnectOptions::new()
                .filename(&path)
                .busy_timeout(BUSY);
            let mut connection = SqliteConnection::connect_with(&options).await?;
            let offsets = beside(&path, "-offsets").display().to_string();
            let attached = sqlx::query("ATTACH DATABASE $1 AS offsets").bind(offsets);
            attached.execute(&mut connection).await?;
            let mut transaction = connection.begin().await?;
            let select = r#"SELECT "food", "count" FROM main."aggregated" ORDER BY rowid"#;
            let counts = transaction.fetch_all(select).await?;
            let select =
                "SELECT partition, next, epoch, begun FROM offsets.positions WHERE topic = $1";
            let positions = sqlx::query(select).bind(topic);
            let positions = positions.fetch_all(&mut *transaction).await?;
            let mut state = CountsState::default();
            for row in counts {
                state
                    .counts
                    .push((row.try_get("food")?, row.try_get("count")?));
            }
            for row in positions {
                let (partition, begun): (i32, i64) =
                    (row.try_get("partition")?, row.try_get("begun")?);
                let counted = Counted {
                    from: begun,
                    to: row.try_get("next")?,
                    others: begun > 0 || row.try_get::<i64, _>("epoch")? > 0,
                };
                state.counted.insert(partition, counted);
            }
            anyhow::Ok(state)
        };
        read.await
            .with_context(|| format!("cannot read the counts in {}", path.display()))
    }

    /// As [`Writer::apply`](crate::Writer::apply), for the counts of a batch.
    pub async fn apply(&self, topic: &str, batch: &Batch) -> anyhow::Result<Applied> {
        let mut connection = self.connection.lock().await;
        let applied = apply(&mut connection, topic, batch).await;
        if applied.is_err() {
            // The driver does not notice when SQLite has ended the transaction by itself, such as on a full disk.
            _ = connection.execute("ROLLBACK").await;
        }
        applied.with_context(|| format!("cannot store a batch in {}", self.path.display()))
    }
}

async fn apply(
    connection: &mut SqliteConnection,
    topic: &str,
    batch: &Batch,
) -> sqlx::Result<Applied> {
    // All locks that the transaction needs are taken now, so that a reader cannot make it fail halfway.
    connection.execute("BEGIN IMMEDIATE").await?;
    let mut superseded = Vec::new();
    for step in &batch.advances {
        if !advance(connection, topic, step).await? {
            superseded.push(step.partition);
        }
    }
    if !superseded.is_empty() {
        connection.execute("ROLLBACK").await?;
        return Ok(Applied::Superseded(superseded));
    }
    for (food, count) in batch.counts.rows() {
        sqlx::query(ADD)
            .bind(food)
            .bind(count)
            .execute(&mut *connection)
            .await?;
    }
    connection.execute("COMMIT").await?;
    Ok(Applied::Committed(Summary::default()))
}

async fn advance(
    connection: &mut SqliteConnection,
    topic: &str,
    step: &Advance,
) -> sqlx::Result<bool> {
    let (from, to) = (step.from, step.to);
    let moved = sqlx::query(
        "UPDATE offsets.positions SET next = $1, fingerprint = $2, record_time = $3, epoch = $4 \
         WHERE topic = $5 AND partition = $6 AND next = $7 AND epoch = $8",
    )
    .bind(to.next)
    .bind(to.fingerprint.map(i64::from))
    .bind(to.record_time)
    .bind(i64::from(to.epoch))
    .bind(topic)
    .bind(i64::from(step.partition))
    .bind(from.next)
    .bind(i64::from(from.epoch))
    .execute(connection)
    .await?;
    Ok(moved.rows_affected() == 1)
}

fn position(row: &SqliteRow) -> anyhow::Result<Position> {
    let fingerprint: Option<i64> = row.try_get("fingerprint")?;
    Ok(Position {
        next: row.try_get("next")?,
        fingerprint: fingerprint.map(u16::try_from).transpose()?,
        record_time: row.try_get("record_time")?,
        epoch: u32::try_from(row.try_get::<i64, _>("epoch")?)?,
    })
}

/// Checks that both files are what they should be, and creates what is missing.
async fn prepare(connection: &mut SqliteConnection, path: &Path) -> anyhow::Result<()> {
    // The first query also completes or undoes what a killed process had begun.
    let row = connection.fetch_one("PRAGMA main.journal_mode").await?;
    let mode: String = row.try_get(0)?;
    ensure!(
        mode == "delete",
        "its journal mode is {mode:?}, with which a commit over two files is not atomic; set it to \"delete\""
    );
    connection.execute(TABLE).await?;
    let columns = connection
        .fetch_all("PRAGMA main.table_info(aggregated)")
        .await?;
    let names = columns.iter().map(|row| row.try_get("name"));
    let names: Vec<String> = names.collect::<sqlx::Result<_>>()?;
    ensure!(
        names == ["food", "count"],
        "its table \"aggregated\" has the columns {names:?}, not \"food\" and \"count\""
    );
    connection.execute(OFFSETS).await?;
    // The user deleted the counts: they are computed again.
    let forget =
        r#"DELETE FROM offsets.positions WHERE NOT EXISTS (SELECT 1 FROM main."aggregated")"#;
    if connection.execute(forget).await?.rows_affected() > 0 {
        tracing::warn!(file = %path.display(), "the file has no counts; the positions beside it are deleted, and the topic is read from its start");
    }
    let stored = connection
        .fetch_optional("SELECT path FROM offsets.file")
        .await?;
    let stored: Option<String> = stored.map(|row| row.try_get("path")).transpose()?;
    let now = path.display().to_string();
    match stored {
        Some(stored) if stored != now => bail!(
            "it was written at {stored} before, and a commit is only atomic while every program opens the file at the same \
             path; mount its folder there, or set the path in {} if no program was killed while it wrote",
            beside(path, "-offsets").display()
        ),
        Some(_) => {}
        None => {
            let insert = sqlx::query("INSERT INTO offsets.file (path) VALUES ($1)").bind(now);
            insert.execute(connection).await?;
        }
    }
    Ok(())
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let open = || File::options().create(true).append(true).open(path);
    let lock =
        open().with_context(|| format!("cannot write to the folder of {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "another projector counts into this file (it has locked {}); end one of them",
            path.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// A file beside another one, whose name it continues.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
