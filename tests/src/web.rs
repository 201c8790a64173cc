//! A web server that a test plays itself, on a host's loopback: metadata services, issuers, feeds.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::host::Host;

/// What is answered to a request line such as `GET /keys`, and how often it was asked.
type Pages = Arc<Mutex<BTreeMap<String, (Vec<u8>, usize)>>>;

/// The server; it lives as long as the test's process.
#[derive(Clone, Debug)]
pub struct Web {
    pages: Pages,
    port: u16,
}

impl Host {
    /// Serves pages on this host's loopback.
    pub fn web(&self, port: u16) -> Result<Web> {
        let listener = self.listen_on_loopback(port)?;
        let web = Web { pages: Arc::default(), port };
        let pages = web.pages.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One that hangs up early is no matter.
                let _ = answer(stream, &pages);
            }
        });
        Ok(web)
    }
}

impl Web {
    /// Answers `request`, such as `GET /keys` (a `?` and what follows is not looked at), with this from now on.
    pub fn put(&self, request: &str, body: impl Into<Vec<u8>>) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.entry(request.to_owned()).or_default().0 = body.into();
    }

    /// How often `request` was asked.
    pub fn asked(&self, request: &str) -> usize {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).get(request).map_or(0, |page| page.1)
    }

    /// The address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn answer(mut stream: TcpStream, pages: &Pages) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let request = first.split(['?']).next().unwrap_or_default().trim_end_matches(" HTTP/1.1\r\n");
    let body = {
        let mut pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.get_mut(request).map(|page| {
            page.1 += 1;
            page.0.clone()
        })
    };
    let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    Ok(())
}
