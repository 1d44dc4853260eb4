//! A private PostgreSQL for the tests of one process.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::kafka_process::{KafkaProcess, random};
use crate::{Authority, Certificate, leave_out};

/// Starting takes a second, and several times as long on two busy cores.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Stops PostgreSQL and deletes its folder when the parent closes the pipe, because it ended or died.
const GUARD: &str = r#"read -r _; [ ! -f "$0/data/postmaster.pid" ] || kill -s QUIT "$(head -1 "$0/data/postmaster.pid")"
while [ -f "$0/data/postmaster.pid" ] && kill -s 0 "$(head -1 "$0/data/postmaster.pid")" 2>/dev/null; do sleep 0.1; done
rm -rf "$0""#;

/// A running PostgreSQL with an empty database. It ends with the process of the test.
pub struct Postgres {
    folder: PathBuf,
    programs: PathBuf,
    port: u16,
    server: Mutex<Option<Child>>,
    /// Open until our process ends.
    _guard: Child,
}

/// The PostgreSQL that all tests of this process share; each uses a schema of its own. If it is not installed, the test is
/// skipped with one line; with `CI=true` it fails.
pub fn postgres() -> Option<&'static Postgres> {
    static POSTGRES: OnceLock<Option<Postgres>> = OnceLock::new();
    let started = POSTGRES.get_or_init(Postgres::start);
    if started.is_none() {
        leave_out("PostgreSQL (initdb, postgres) is not installed");
    }
    started.as_ref()
}

impl Postgres {
    /// A new one, for a test that stops it.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "PostgreSQL is not installed: no initdb on the PATH or below /usr/lib/postgresql"
            );
            return None;
        };
        Some(Self::start_from(programs).expect("cannot start PostgreSQL"))
    }

    fn start_from(programs: PathBuf) -> anyhow::Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("herald-postgres-{:08x}", random() & 0xffff_ffff));
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // The server runs as another user than root.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        let guard = Command::new("sh")
            .args(["-c", GUARD])
            .arg(&folder)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot run sh")?;
        let postgres = Self {
            port: KafkaProcess::free_port()?,
            server: Mutex::new(None),
            _guard: guard,
            folder,
            programs,
        };
        let made = postgres
            .command("initdb")
            .args([
                "-U",
                "herald",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "-D",
            ])
            .arg(postgres.folder.join("data"))
            .output()
            .context("cannot run initdb")?;
        if !made.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        postgres.start_again()?;
        Ok(postgres)
    }

    /// The address of its database, for its only role, which is its superuser.
    pub fn url(&self) -> String {
        self.url_as("herald")
    }

    /// The same for another role.
    pub fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/postgres", self.port)
    }

    /// Restarts it so that it accepts nothing but TLS from any other role than its superuser, with this certificate of its own:
    /// from the role `by_certificate`, a client certificate with its name, signed by `clients`; from all others, a password.
    pub fn demand_tls(&self, own: &Certificate, clients: &Authority) -> anyhow::Result<()> {
        let data = self.folder.join("data");
        let server = fs::metadata(&data)?;
        let key = data.join("server.key");
        fs::copy(&own.key, &key)?;
        // PostgreSQL reads no key that others may read.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        chown(&key, Some(server.uid()), Some(server.gid()))?;
        let rules = "hostssl all herald 127.0.0.1/32 trust
hostssl all by_certificate 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 scram-sha-256
";
        fs::write(data.join("pg_hba.conf"), rules)?;
        fs::copy(&own.certificate, data.join("server.crt"))?;
        fs::copy(&clients.certificate, data.join("clients.crt"))?;
        let settings = "ssl = on\nssl_ca_file = 'clients.crt'\n";
        fs::OpenOptions::new()
            .append(true)
            .open(data.join("postgresql.conf"))?
            .write_all(settings.as_bytes())?;
        self.stop();
        self.start_again()
    }

    /// The port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it at once, as a crash would.
    pub fn stop(&self) {
        let server = self
            .server
            .lock()
            .expect("no panic while it is held")
            .take();
        if let Some(mut server) = server {
            let pid =
                fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
            let pid = pid.lines().next().unwrap_or_default();
            _ = Command::new("sh")
                .args(["-c", "kill -s QUIT \"$0\"", pid])
                .status();
            _ = server.wait();
        }
    }

    /// Starts it with the same port and data.
    pub fn start_again(&self) -> anyhow::Result<()> {
        let mut server = self
            .command("postgres")
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-k")
            .arg(&self.folder)
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
            .spawn()
            .context("cannot run postgres")?;
        let deadline = Instant::now() + START_DEADLINE;
        while self.sql("SELECT 1").is_err() {
            if let Some(status) = server.try_wait()? {
                bail!("PostgreSQL exited with {status}");
            }
            if Instant::now() > deadline {
                bail!("PostgreSQL did not start within {START_DEADLINE:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        *self.server.lock().expect("no panic while it is held") = Some(server);
        Ok(())
    }

    /// Executes statements as the superuser, and returns what they print.
    pub fn sql(&self, statements: &str) -> anyhow::Result<String> {
        let mut psql = Command::new(self.programs.join("psql"))
            .args(["-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run psql")?;
        let mut input = psql.stdin.take().context("psql has an input")?;
        input.write_all(statements.as_bytes())?;
        drop(input);
        let output = psql.wait_with_output()?;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// One of PostgreSQL's programs, which refuse to run as root.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        let mut command = if is_root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The folder with PostgreSQL's programs: the newest below Debian's folder, or that on the PATH.
fn programs() -> Option<PathBuf> {
    let has_all = |folder: &PathBuf| {
        let has = |program| folder.join(program).is_file();
        has("initdb") && has("postgres") && has("psql")
    };
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| Path::new(&folder).to_owned());
    folders.into_iter().rev().chain(on_path).find(has_all)
}
