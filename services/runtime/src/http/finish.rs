//! The end of a connection whose client may still be sending.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Closes the connection for writing, then reads and discards until the client has closed it too.
///
/// Without this, closing a socket with unread bytes makes TCP reset the connection, and the client may lose what was written last.
/// The caller sets a time limit.
pub async fn finish(connection: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    connection.shutdown().await?;
    let mut rest = [0; 4 << 10];
    while connection.read(&mut rest).await? > 0 {}
    Ok(())
}
