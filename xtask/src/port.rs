//! Which process listens on a port.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Whether nothing listens on it.
pub fn is_free(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // macOS lets us bind 127.0.0.1 while another process listens on all addresses.
    let answers = TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok();
    !answers && TcpListener::bind(address).is_ok()
}

/// Whether an HTTP server answers on it with this status within two seconds.
pub fn answers(port: u16, path: &str, expected: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let limit = Duration::from_secs(2);
    let Ok(mut stream) = TcpStream::connect_timeout(&address, limit) else {
        return false;
    };
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
    let mut status = [0; 12];
    stream.set_read_timeout(Some(limit)).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut status).is_ok()
        && status == *format!("HTTP/1.1 {expected}").as_bytes()
}

/// "port 8001 is in use by python3 (process 123)", if the system shows the process.
pub fn in_use(port: u16) -> String {
    match listener(port) {
        Some(process) => format!("port {port} is in use by {process}"),
        None => format!("port {port} is in use by another process"),
    }
}

fn listener(port: u16) -> Option<String> {
    let linux = output("ss", &["-Hltnp", &format!("sport = :{port}")]);
    let macos = || {
        output(
            "lsof",
            &["-nP", "-sTCP:LISTEN", "-Fpc", &format!("-iTCP:{port}")],
        )
    };
    linux
        .and_then(|text| from_ss(&text))
        .or_else(|| macos().and_then(|text| from_lsof(&text)))
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(args).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()
}

/// Reads `… users:(("python3",pid=123,fd=3))`.
fn from_ss(text: &str) -> Option<String> {
    let (_, users) = text.split_once("users:((\"")?;
    let (name, rest) = users.split_once("\",pid=")?;
    let (id, _) = rest.split_once(',')?;
    Some(format!("{name} (process {id})"))
}

/// Reads the lines `p123` and `cpython3`.
fn from_lsof(text: &str) -> Option<String> {
    let id = text.lines().find_map(|line| line.strip_prefix('p'))?;
    let name = text.lines().find_map(|line| line.strip_prefix('c'))?;
    Some(format!("{name} (process {id})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_read_from_ss() {
        let text = r#"LISTEN 0 5 0.0.0.0:8001 0.0.0.0:* users:(("python3",pid=123,fd=3),("x",pid=4,fd=3))"#;
        assert_eq!(from_ss(text).unwrap(), "python3 (process 123)");
        assert_eq!(from_ss("LISTEN 0 5 0.0.0.0:8001 0.0.0.0:*"), None);
    }

    #[test]
    fn the_process_is_read_from_lsof() {
        assert_eq!(
            from_lsof("p123\ncpython3\nf3\n").unwrap(),
            "python3 (process 123)"
        );
        assert_eq!(from_lsof(""), None);
    }

    #[test]
    fn a_port_with_a_listener_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        assert!(in_use(port).starts_with(&format!("port {port} is in use by ")));
        drop(listener);
        assert!(is_free(port));
    }
}
