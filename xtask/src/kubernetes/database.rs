//! The passwords, roles and schemas of the environments in PostgreSQL.
//!
//! Each environment has a schema, a role that owns it, for the projector, and one that may only read, for the gateway. Their
//! addresses are in the Secret `herald-database` of the environment's namespace.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Secret;

use crate::command::{output, with_input};
use crate::environments::Environment;
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::labels::{MANAGED_BY, XTASK, is_ours, selector};
use crate::kubernetes::secrets::{self, OPAQUE};
use crate::kubernetes::servers::POSTGRES;

/// The Secret of an environment that the chart reads by default, and its keys.
const SECRET: &str = "herald-database";
const PROJECTOR_URL: &str = "projector-url";
const GATEWAY_URL: &str = "gateway-url";

/// The Secret with the password of PostgreSQL's superuser.
const SUPERUSER: &str = "herald-postgres";

/// Where pods find the database.
const SERVER: &str = "herald-postgres.postgres.svc.cluster.local:5432/herald";

/// Reads SQL from its input. It connects over TCP, which always asks for the password.
const PSQL: &str = "PGPASSWORD=$(cat /run/secrets/postgres/password) \
    exec psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --host=127.0.0.1 --username=postgres --dbname=herald";

/// A role of PostgreSQL that a service connects with.
struct Role {
    name: String,
    password: String,
}

impl Role {
    fn url(&self) -> String {
        let Self { name, password } = self;
        format!("postgres://{name}:{password}@{SERVER}")
    }
}

/// Creates the superuser's password if there is none; PostgreSQL needs it to start.
pub fn create_superuser(cluster: &Cluster) -> anyhow::Result<()> {
    if secrets::find(cluster, POSTGRES.namespace, SUPERUSER)?.is_some() {
        return Ok(());
    }
    let data = [("password", password()?)];
    secrets::apply(cluster, POSTGRES.namespace, SUPERUSER, OPAQUE, &data)
}

/// Gives an environment its roles and its schema. A Secret that `up` did not create is left alone: it is the address of another
/// database.
pub fn prepare(cluster: &Cluster, environment: &Environment) -> anyhow::Result<()> {
    let namespace = &environment.namespace;
    let schema = &environment.database_schema;
    let found = secrets::find(cluster, namespace, SECRET)?;
    if found
        .as_ref()
        .is_some_and(|found| !is_ours(&found.metadata))
    {
        println!(
            "{}: uses the database of its Secret {SECRET}",
            environment.name
        );
        return Ok(());
    }
    let passwords = match &found {
        Some(found) => [PROJECTOR_URL, GATEWAY_URL].map(|key| password_in(found, key)),
        None => [password(), password()],
    };
    let [writer, reader] = passwords;
    let writer = Role {
        name: schema.clone(),
        password: writer?,
    };
    let reader = Role {
        name: format!("{schema}_reader"),
        password: reader?,
    };
    execute(cluster, &statements(schema, &writer, &reader))
        .with_context(|| format!("cannot prepare the database of {}", environment.name))?;
    if found.is_none() {
        let data = [(PROJECTOR_URL, writer.url()), (GATEWAY_URL, reader.url())];
        secrets::apply(cluster, namespace, SECRET, OPAQUE, &data)?;
        // Pods that run already have the old passwords.
        let services = format!(
            "{},app.kubernetes.io/component in (gateway, projector)",
            selector(&environment.release)
        );
        let delete = ["delete", "pods", "--wait=false", "--selector", &services];
        output(cluster.kubectl(&delete).args(["--namespace", namespace]))?;
    }
    Ok(())
}

/// Deletes the Secret of an environment if `up` created it.
pub fn forget(cluster: &Cluster, environment: &Environment) -> anyhow::Result<()> {
    let ours = format!("{MANAGED_BY}={XTASK}");
    let mut delete = cluster.kubectl(&["delete", "secrets", "--selector", &ours]);
    delete.args(["--namespace", &environment.namespace]);
    output(&mut delete).map(drop)
}

/// The password in the address under a key.
fn password_in(secret: &Secret, key: &str) -> anyhow::Result<String> {
    let read = || {
        let url = secrets::text(secret, key)?;
        let (credentials, _) = url.strip_prefix("postgres://")?.split_once('@')?;
        let (_, password) = credentials.split_once(':')?;
        let is_ours = password.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_ours.then(|| password.to_owned())
    };
    read().with_context(|| {
        format!("Secret {SECRET} has no address under {key} that up created: delete the Secret, and run up again")
    })
}

/// Roles and a schema; the tables are the projector's.
fn statements(schema: &str, writer: &Role, reader: &Role) -> String {
    let mut sql = String::new();
    for Role { name, password } in [writer, reader] {
        sql += &format!(
            "DO $$ BEGIN
               IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN CREATE ROLE \"{name}\"; END IF;
             END $$;
             ALTER ROLE \"{name}\" LOGIN PASSWORD '{password}';\n"
        );
    }
    let owner = &writer.name;
    sql + &format!(
        "SET client_min_messages TO warning; CREATE SCHEMA IF NOT EXISTS \"{schema}\" AUTHORIZATION \"{owner}\";\n"
    )
}

fn execute(cluster: &Cluster, sql: &str) -> anyhow::Result<()> {
    let exec = ["exec", "--stdin", "--namespace", POSTGRES.namespace];
    let mut psql = cluster.kubectl(&exec);
    psql.args(["herald-postgres-0", "--", "sh", "-c", PSQL]);
    let ended = with_input(&mut psql, sql)?;
    let error = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "psql: {}", error.trim());
    Ok(())
}

/// 128 random bits in hexadecimal, which need no escaping in an address or in SQL.
fn password() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
    read.context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str) -> Role {
        Role {
            name: name.to_owned(),
            password: password().unwrap(),
        }
    }

    #[test]
    fn a_password_is_new_each_time_and_is_read_back_from_the_secret() {
        let (writer, other) = (role("herald_dev"), role("herald_dev"));
        assert_ne!(writer.password, other.password);
        assert_eq!(writer.password.len(), 32);
        let secret = |url: &str| -> Secret {
            let url = k8s_openapi::ByteString(url.as_bytes().to_vec());
            Secret {
                data: Some([(PROJECTOR_URL.to_owned(), url)].into()),
                ..Secret::default()
            }
        };
        let found = password_in(&secret(&writer.url()), PROJECTOR_URL);
        assert_eq!(found.unwrap(), writer.password);
        for other in ["", "postgres://a@b/c", "postgres://a:it's@b/c"] {
            let error = password_in(&secret(other), PROJECTOR_URL).unwrap_err();
            assert!(error.to_string().contains("delete the Secret"), "{error}");
        }
    }

    #[test]
    fn the_reader_owns_nothing() {
        let sql = statements(
            "herald_dev",
            &role("herald_dev"),
            &role("herald_dev_reader"),
        );
        let owner = r#"CREATE SCHEMA IF NOT EXISTS "herald_dev" AUTHORIZATION "herald_dev";"#;
        assert!(sql.contains(owner), "{sql}");
        assert_eq!(sql.matches("AUTHORIZATION").count(), 1);
    }
}
