//! Counts in a file of SQLite that belongs to others, with the positions in a second file beside it.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::sync::Mutex;

use crate::{Advance, Applied, Batch, Counted, CountsState, Position, Summary};

/// How long a commit waits for readers of the file, which hold it for a few seconds at most. Less than the projector waits for a
/// commit.
const BUSY: Duration = Duration::from_secs(20);

/// The only table of the file; its readers depend on it.
const TABLE: &str = r#"CREATE TABLE IF NOT EXISTS "aggregated" ("food" TEXT, "count" INTEGER, PRIMARY KEY("food"))"#;

const ADD: &str = r#"INSERT INTO main."aggregated" ("food", "count") VALUES ($1, $2)
    ON CONFLICT ("food") DO UPDATE SET "count" = "count" + excluded."count""#;

const OFFSETS: &str = "
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
    );
    -- The sum of all counts: one row.
    CREATE TABLE IF NOT EXISTS offsets.total (count BIGINT NOT NULL);";

const SUM: &str = r#"SELECT COALESCE(SUM("count"), 0) AS total FROM main."aggregated""#;

/// A file `db.sqlite` with the single table `aggregated(food, count)`, which other programs read at any time, and
/// `db.sqlite-offsets` with the positions. Both are changed in one transaction, which is atomic over the two files as long as every
/// program opens them at the same absolute path and may write to their folder: after a crash, whoever opens one first completes or
/// undoes what was begun. That path is in `db.sqlite-lock`.
pub struct CountsFile {
    path: PathBuf,
    connection: Mutex<Writing>,
    /// No other process counts into the file while it is locked.
    _lock: File,
}

struct Writing {
    connection: SqliteConnection,
    /// A transaction was begun, and it is not known that it has ended.
    is_open: bool,
}

/// The file must not be counted into: a sentence for the user, who has to change something.
#[derive(Debug)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refuse<T>(sentence: String) -> anyhow::Result<T> {
    Err(Refused(sentence).into())
}

impl CountsFile {
    /// Opens the file, or creates it with its table. A file with counts but without a position is continued: see
    /// [`is_continued`](Self::is_continued).
    ///
    /// # Errors
    ///
    /// [`Refused`] if another process counts into the file, it is at another path than before, or it has another table. Other errors
    /// may pass, such as a full disk, or a program that holds the file.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let path = canonical(path)?;
        // Before SQLite opens anything: it completes what a killed process had begun, and needs the same path for that.
        let lock = lock(&path)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .busy_timeout(BUSY);
        let opened = async {
            let mut connection = SqliteConnection::connect_with(&options).await?;
            attach(&mut connection, &path).await?;
            prepare(&mut connection, &path).await?;
            anyhow::Ok(connection)
        };
        let connection = opened
            .await
            .with_context(|| format!("cannot count into {shown}"))?;
        Ok(Self {
            path,
            connection: Mutex::new(Writing {
                connection,
                is_open: false,
            }),
            _lock: lock,
        })
    }

    /// As [`Writer::position`](crate::Writer::position).
    pub async fn position(&self, topic: &str, partition: i32) -> anyhow::Result<Option<Position>> {
        let mut writing = self.connection.lock().await;
        let connection = writing.ready().await?;
        let select = "SELECT next, fingerprint, record_time, epoch FROM offsets.positions WHERE topic = $1 AND partition = $2";
        let row = sqlx::query(select)
            .bind(topic)
            .bind(i64::from(partition))
            .fetch_optional(connection)
            .await?;
        row.as_ref().map(position).transpose()
    }

    /// Whether the file has counts, but no position for this topic: it was made by another program, which has read the topic up to
    /// its end.
    pub async fn is_continued(&self, topic: &str) -> anyhow::Result<bool> {
        let mut writing = self.connection.lock().await;
        let connection = writing.ready().await?;
        let select = r#"SELECT EXISTS (SELECT 1 FROM main."aggregated") AND NOT EXISTS (SELECT 1 FROM offsets.positions WHERE topic = $1) AS continued"#;
        let row = sqlx::query(select)
            .bind(topic)
            .fetch_one(connection)
            .await?;
        Ok(row.try_get::<i64, _>("continued")? == 1)
    }

    /// As [`Writer::begin`](crate::Writer::begin), for several partitions: all of them, or none.
    pub async fn begin(&self, topic: &str, positions: &[(i32, Position)]) -> anyhow::Result<()> {
        let mut writing = self.connection.lock().await;
        let connection = writing.begin().await?;
        for (partition, position) in positions {
            sqlx::query(
                "INSERT INTO offsets.positions (topic, partition, next, fingerprint, record_time, epoch, begun) \
                 VALUES ($1, $2, $3, $4, $5, $6, $3) ON CONFLICT DO NOTHING",
            )
            .bind(topic)
            .bind(i64::from(*partition))
            .bind(position.next)
            .bind(position.fingerprint.map(i64::from))
            .bind(position.record_time)
            .bind(i64::from(position.epoch))
            .execute(&mut *connection)
            .await?;
        }
        writing.end("COMMIT").await?;
        Ok(())
    }

    /// All counts of a file with the positions in this topic that they were computed from. It may be counted into meanwhile.
    ///
    /// # Errors
    ///
    /// If there is no such file, or it cannot be read.
    pub async fn read(path: &Path, topic: &str) -> anyhow::Result<CountsState> {
        let read = async {
            let path = canonical(path)?;
            let options = SqliteConnectOptions::new()
                .filename(&path)
                .busy_timeout(BUSY);
            let mut connection = SqliteConnection::connect_with(&options).await?;
            attach(&mut connection, &path).await?;
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
        let mut writing = self.connection.lock().await;
        let applied = writing.apply(topic, batch).await;
        applied.with_context(|| format!("cannot store a batch in {}", self.path.display()))
    }
}

impl Writing {
    /// The connection, without a transaction. One may be left of a commit that failed, or that nobody waited for.
    async fn ready(&mut self) -> sqlx::Result<&mut SqliteConnection> {
        if self.is_open {
            // It fails if SQLite has ended the transaction by itself, such as on a full disk.
            _ = self.connection.execute("ROLLBACK").await;
            self.is_open = false;
        }
        Ok(&mut self.connection)
    }

    /// Begins a transaction with all locks that it needs, so that a reader cannot make it fail halfway.
    async fn begin(&mut self) -> sqlx::Result<&mut SqliteConnection> {
        self.ready().await?;
        self.is_open = true;
        self.connection.execute("BEGIN IMMEDIATE").await?;
        Ok(&mut self.connection)
    }

    async fn end(&mut self, statement: &'static str) -> sqlx::Result<()> {
        self.connection.execute(statement).await?;
        self.is_open = false;
        Ok(())
    }

    async fn apply(&mut self, topic: &str, batch: &Batch) -> sqlx::Result<Applied> {
        let connection = self.begin().await?;
        let mut superseded = Vec::new();
        for step in &batch.advances {
            if !advance(connection, topic, step).await? {
                superseded.push(step.partition);
            }
        }
        if !superseded.is_empty() {
            self.end("ROLLBACK").await?;
            return Ok(Applied::Superseded(superseded));
        }
        for (food, count) in batch.counts.rows() {
            let add = sqlx::query(ADD).bind(food).bind(count);
            add.execute(&mut *connection).await?;
        }
        let total = sqlx::query("UPDATE offsets.total SET count = count + $1");
        let total = total.bind(batch.counts.total());
        total.execute(&mut *connection).await?;
        self.end("COMMIT").await?;
        Ok(Applied::Committed(Summary::default()))
    }
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
    for (pragma, suffix) in [
        ("PRAGMA main.journal_mode", ""),
        ("PRAGMA offsets.journal_mode", "-offsets"),
    ] {
        let row = connection.fetch_one(pragma).await?;
        let mode: String = row.try_get(0)?;
        if mode != "delete" {
            let file = beside(path, suffix);
            return refuse(format!(
                "the journal mode of {} is {mode:?}, with which a commit over two files is not atomic; set it to \"delete\"",
                file.display()
            ));
        }
    }
    connection.execute(TABLE).await?;
    let columns = connection
        .fetch_all("PRAGMA main.table_info(aggregated)")
        .await?;
    let names = columns.iter().map(|row| row.try_get("name"));
    let names: Vec<String> = names.collect::<sqlx::Result<_>>()?;
    if names != ["food", "count"] {
        return refuse(format!(
            "its table \"aggregated\" has the columns {names:?}, not \"food\" and \"count\""
        ));
    }
    connection.execute(OFFSETS).await?;
    let sum: i64 = connection.fetch_one(SUM).await?.try_get("total")?;
    let total = connection
        .fetch_optional("SELECT count FROM offsets.total")
        .await?;
    let Some(total) = total else {
        let insert = sqlx::query("INSERT INTO offsets.total (count) VALUES ($1)").bind(sum);
        insert.execute(connection).await?;
        return Ok(());
    };
    let total: i64 = total.try_get("count")?;
    if sum == total {
        return Ok(());
    }
    let file = path.display();
    if sum == 0 {
        tracing::warn!(%file, "the counts were deleted: reading the topic from its start");
        connection.execute("DELETE FROM offsets.positions").await?;
    } else {
        tracing::warn!(%file, sum, expected = total, "another program has changed the counts; they are continued as they are");
    }
    let update = sqlx::query("UPDATE offsets.total SET count = $1").bind(sum);
    update.execute(connection).await?;
    Ok(())
}

async fn attach(connection: &mut SqliteConnection, path: &Path) -> sqlx::Result<()> {
    let offsets = beside(path, "-offsets").display().to_string();
    let attach = sqlx::query("ATTACH DATABASE $1 AS offsets").bind(offsets);
    attach.execute(connection).await.map(drop)
}

/// The absolute path of a file that may not exist yet.
fn canonical(path: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let shown = path.display();
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize();
    match (folder, path.file_name()) {
        (Ok(folder), Some(name)) => Ok(folder.join(name)),
        (_, None) => refuse(format!("{shown} is not the path of a file")),
        (Err(error), _) => refuse(format!(
            "the folder of {shown} cannot be opened ({error}); create it, or correct --counts-database"
        )),
    }
}

/// Locks the file for this process, and checks that it is where it was.
fn lock(path: &Path) -> anyhow::Result<File> {
    let name = beside(path, "-lock");
    let name = name.display();
    let open = || {
        let mut options = File::options();
        options.create(true).read(true).append(true);
        options.open(beside(path, "-lock"))
    };
    let mut lock = open().or_else(|error| refuse(format!("cannot write to {name}: {error}")))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return refuse(format!(
                "another projector counts into this file (it has locked {name}); end one of them"
            ));
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {name}"));
        }
    }
    let now = path.display().to_string();
    let mut before = String::new();
    lock.read_to_string(&mut before)
        .with_context(|| format!("cannot read {name}"))?;
    if before.is_empty() {
        lock.write_all(now.as_bytes())
            .with_context(|| format!("cannot write to {name}"))?;
    } else if before != now {
        return refuse(format!(
            "the counts in {now} were written at {before} before, and a commit is only atomic while every program opens the file at \
             the same path: mount its folder there, or delete {name} if no program was killed while it wrote"
        ));
    }
    Ok(lock)
}

/// A file beside another one, whose name it continues.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
