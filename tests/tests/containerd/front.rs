//! A runtime as CRI-O or a newer containerd is: CRI's own events, and none of containerd's. It stands before a real
//! containerd, which does everything else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

/// `GetContainerEvents` answers with these (`runtime/v1/api.proto`).
#[derive(Clone, PartialEq, Message)]
pub struct ContainerEventResponse {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(int32, tag = "2")]
    pub container_event_type: i32,
    #[prost(int64, tag = "3")]
    pub created_at: i64,
}

/// `ContainerEventType.CONTAINER_STARTED_EVENT`
pub const STARTED: i32 = 1;

/// The runtime.
pub struct Front {
    socket: PathBuf,
    state: Arc<State>,
    runtime: tokio::runtime::Runtime,
}

struct State {
    behind: PathBuf,
    calls: Mutex<BTreeMap<String, usize>>,
    subscribers: Mutex<Vec<mpsc::UnboundedSender<Bytes>>>,
    /// Connections of an earlier number end.
    epoch: watch::Sender<u64>,
}

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

impl Front {
    /// Listens in a directory, before the containerd at `behind`.
    pub fn start(directory: &Path, behind: &Path) -> Result<Self> {
        let socket = directory.join("front.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let state = State {
            behind: behind.to_owned(),
            calls: Mutex::default(),
            subscribers: Mutex::default(),
            epoch: watch::Sender::new(0),
        };
        let front = Self { socket, state: Arc::new(state), runtime };
        front.listen()?;
        Ok(front)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Tells an event to whoever follows; how many those are.
    pub fn tell(&self, event: &ContainerEventResponse) -> usize {
        let mut frame = BytesMut::new();
        // Not compressed, and so long (gRPC over HTTP/2, "Length-Prefixed-Message").
        frame.put_u8(0);
        frame.put_u32(u32::try_from(event.encoded_len()).unwrap_or_default());
        frame.put_slice(&event.encode_to_vec());
        self.send(frame.freeze())
    }

    /// Bytes where an event is expected.
    pub fn send(&self, bytes: Bytes) -> usize {
        let mut subscribers = lock(&self.state.subscribers);
        subscribers.retain(|subscriber| subscriber.send(bytes.clone()).is_ok());
        subscribers.len()
    }

    /// Breaks every connection and is away.
    pub fn stop(&self) -> Result<()> {
        std::fs::remove_file(&self.socket)?;
        self.state.epoch.send_modify(|epoch| *epoch += 1);
        lock(&self.state.subscribers).clear();
        Ok(())
    }

    /// Is there again.
    pub fn listen(&self) -> Result<()> {
        let _in_runtime = self.runtime.enter();
        let listener = UnixListener::bind(&self.socket)?;
        let state = self.state.clone();
        self.runtime.spawn(async move {
            let mut epoch = state.epoch.subscribe();
            epoch.mark_unchanged();
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = epoch.changed() => return,
                };
                if let Ok((stream, _)) = stream {
                    tokio::spawn(serve(stream, state.clone(), epoch.clone()));
                }
            }
        });
        Ok(())
    }

    /// How often a method was called.
    pub fn calls(&self, method: &str) -> usize {
        lock(&self.state.calls).iter().filter(|(name, _)| name.ends_with(method)).map(|(_, count)| count).sum()
    }

    /// Waits until somebody follows.
    pub fn wait_for_subscriber(&self) -> Result<()> {
        self.wait("nobody follows", || !lock(&self.state.subscribers).is_empty())
    }

    /// Waits until a method has been called more often than that.
    pub fn wait_for_call(&self, method: &str, beyond: usize) -> Result<()> {
        self.wait(method, || self.calls(method) > beyond)
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            ensure!(Instant::now() < deadline, "{what}: {:?}", lock(&self.state.calls));
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

async fn serve(stream: UnixStream, state: Arc<State>, mut epoch: watch::Receiver<u64>) {
    let service = hyper::service::service_fn(move |request| answer(request, state.clone()));
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::select! {
        _ = server.serve_connection(TokioIo::new(stream), service) => {}
        _ = epoch.changed() => {}
    }
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, Infallible> {
    let method = request.uri().path().to_owned();
    *lock(&state.calls).entry(method.clone()).or_default() += 1;
    if method.ends_with(".Events/Subscribe") {
        return Ok(status("12"));
    }
    if method.ends_with("/GetContainerEvents") {
        return Ok(events(&state));
    }
    Ok(ask(request, &state.behind).await.unwrap_or_else(|_| status("14")))
}

/// The answer of the real runtime, as it is.
async fn ask(request: Request<Incoming>, behind: &Path) -> Result<Response<Body>> {
    let stream = UnixStream::connect(behind).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(BodyExt::boxed_unsync))
}

fn events(state: &State) -> Response<Body> {
    let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
    lock(&state.subscribers).push(sender);
    let mut response = Response::new(Events(receiver).boxed_unsync());
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    response
}

/// What subscribers are sent, until there is no sender.
struct Events(mpsc::UnboundedReceiver<Bytes>);

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// An answer that is an error only (gRPC over HTTP/2, "Trailers-Only").
fn status(code: &'static str) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", hyper::header::HeaderValue::from_static(code));
    response
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
