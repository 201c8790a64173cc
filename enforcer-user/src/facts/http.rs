//! A small HTTP client: one request, one answer, bounded in time and size, no redirects, no proxies.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1,
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::FactError;

/// How requests are made.
#[derive(Clone, Debug)]
pub struct Client {
    /// Longest time from the look-up of the name to the last byte of the answer.
    pub timeout: Duration,
    /// Longest answer, bytes.
    pub limit: usize,
    /// PEM file with the authorities that are trusted for `https`; read when the first such address is asked.
    pub ca: PathBuf,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// 2xx, or 304.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// What to send as `If-None-Match` the next time.
    pub etag: Option<String>,
    /// What to send as `If-Modified-Since` the next time.
    pub last_modified: Option<String>,
}

impl Client {
    /// GET, blocking. Must not be called on a thread that drives an asynchronous runtime.
    ///
    /// # Errors
    /// If nobody answers in time, the answer is too long, or its status is neither 2xx nor 304.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, FactError> {
        self.request("GET", url, headers)
    }

    /// PUT without a body, blocking.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn put(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer, FactError> {
        self.request("PUT", url, headers)
    }

    fn request(&self, method: &str, url: &str, headers: &[(&str, &str)]) -> Result<Answer, FactError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| FactError::unreachable(url, error.to_string()))?;
        let answer = runtime.block_on(async {
            tokio::time::timeout(self.timeout, self.exchange(method, url, headers)).await.unwrap_or_else(|_| {
                let waited = humantime::format_duration(self.timeout);
                Err(FactError::unreachable(url, format!("no answer within {waited}")))
            })
        });
        // A look-up of a name cannot be cancelled; nobody waits for it.
        runtime.shutdown_background();
        answer
    }

    async fn exchange(&self, method: &str, url: &str, headers: &[(&str, &str)]) -> Result<Answer, FactError> {
        let target = Target::parse(url)?;
        let failed = |problem: String| FactError::unreachable(url, problem);
        let stream = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(|error| failed(format!("cannot connect: {error}")))?;
        let request = target.request(method, headers).map_err(|error| FactError::configuration(url, error))?;
        if !target.tls {
            return self.converse(url, stream, request).await;
        }
        let name = ServerName::try_from(target.host.clone())
            .map_err(|_| FactError::configuration(url, "its host is no name that a certificate could have"))?;
        let stream = self.connector()?.connect(name, stream).await.map_err(|error| {
            let problem = format!("TLS: {error}; {} says which authorities are trusted", self.ca.display());
            FactError::untrusted(url, problem)
        })?;
        self.converse(url, stream, request).await
    }

    async fn converse(
        &self,
        url: &str,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Empty<Bytes>>,
    ) -> Result<Answer, FactError> {
        let failed = |error: hyper::Error| FactError::unreachable(url, error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with the connection, at the latest with this request's runtime.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
            let problem = format!("answers {status}: redirects are not followed; configure the address it leads to");
            return Err(FactError::unreachable(url, problem));
        }
        if !status.is_success() && status != StatusCode::NOT_MODIFIED {
            return Err(FactError::unreachable(url, format!("answers {status}")));
        }
        let header = |name: HeaderName| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (etag, last_modified) = (header(hyper::header::ETAG), header(hyper::header::LAST_MODIFIED));
        let body = Limited::new(response.into_body(), self.limit).collect().await.map_err(|error| {
            FactError::malformed(url, format!("cannot be read, or is longer than {} bytes: {error}", self.limit))
        })?;
        Ok(Answer { status: status.as_u16(), body: body.to_bytes().into(), etag, last_modified })
    }

    fn connector(&self) -> Result<TlsConnector, FactError> {
        let file = || self.ca.display().to_string();
        let problem = |error: String| FactError::configuration(file(), error);
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(&self.ca)
            .map_err(|error| problem(format!("cannot be read: {error}; it must hold the authorities for https")))?;
        // Bundles of distributions hold certificates that are of no use; the others are enough.
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
        if roots.is_empty() {
            return Err(problem("holds no certificate of an authority".into()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| problem(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Whether what comes from this address cannot be changed on its way: `https`, or this very host.
pub fn is_protected(url: &str) -> bool {
    Target::parse(url).is_ok_and(|target| {
        target.tls
            || target.host == "localhost"
            || target.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// Whether this is an address a [`Client`] can ask.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_url(url: &str) -> Result<(), FactError> {
    Target::parse(url).map(drop)
}

struct Target {
    tls: bool,
    host: String,
    port: u16,
    uri: Uri,
}

impl Target {
    fn parse(url: &str) -> Result<Self, FactError> {
        let wrong = || FactError::configuration(url, "is no address; expected http://HOST/… or https://HOST/…");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            return Err(FactError::configuration("URL", "names a user; credentials in addresses are not supported"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong());
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host, port, uri })
    }

    fn request(&self, method: &str, headers: &[(&str, &str)]) -> Result<Request<Empty<Bytes>>, String> {
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, authority)
            .header(hyper::header::USER_AGENT, concat!("enforcer/", env!("CARGO_PKG_VERSION")))
            .header(hyper::header::CONNECTION, "close");
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|_| format!("header {name} has characters it may not"))?;
            request = request.header(*name, value);
        }
        request.body(Empty::new()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests;
