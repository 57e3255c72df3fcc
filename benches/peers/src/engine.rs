//! The program that kvwarden starts in llama.cpp's place. It does not serve: it says at which port it
//! was told to listen, and the backend of the process that measures listens there.

use std::{
    env,
    io::{self, Write as _},
    net::TcpStream,
    rc::Rc,
};

use anyhow::Context as _;
use tokio::{io::AsyncReadExt as _, net::TcpListener, task::spawn_local};

use crate::backend::Backend;

/// Set for who is started as an engine: the port to say it at.
pub(crate) const ENGINES: &str = "KVWARDEN_PEERS_ENGINES";

/// Runs as an engine, until it is ended.
pub(crate) fn run(engines: &str) -> anyhow::Result<()> {
    let mut args = env::args().skip_while(|arg| arg != "--port");
    let port: u16 = args.nth(1).context("no --port")?.parse()?;
    let mut measuring = TcpStream::connect(("127.0.0.1", engines.parse()?))?;
    measuring.write_all(&port.to_be_bytes())?;
    io::copy(&mut measuring, &mut io::sink())?;
    Ok(())
}

/// Has the backend listen wherever an engine was started; gives the port for [`ENGINES`].
pub(crate) async fn await_engines(backend: Rc<Backend>) -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    spawn_local(async move {
        let mut engines = Vec::new();
        while let Ok((mut engine, _)) = listener.accept().await {
            if let Ok(port) = engine.read_u16().await {
                // In vain if something else has that port; then kvwarden says so.
                let _ = backend.listen(port).await;
            }
            engines.push(engine);
        }
    });
    Ok(port)
}
