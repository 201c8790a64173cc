use std::{collections::BTreeSet, io::Read, io::Write, os::unix::net::UnixStream as Std};

use super::*;
use crate::admin::{Client, ClientError, PuTarget, view::StatusView};

struct Agent;

impl Handler for Agent {
    fn handle(&self, caller: Caller, request: Request) -> Answer<'_> {
        Box::pin(async move {
            assert_eq!(caller.uid, nix::unistd::getuid().as_raw());
            assert_eq!(caller.pid, Some(std::process::id() as i32));
            match request {
                Request::Status => Ok(Response::Status(StatusView { name: "h1".into(), ..Default::default() })),
                Request::PuRemove { pu } => Err(AdminError::new(ErrorKind::NotFound, format!("no PU {pu:?}"))),
                other => Err(AdminError::internal(format!("{other:?}"))),
            }
        })
    }

    fn follow(&self) -> mpsc::Receiver<FollowItem> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            for count in 1..=3 {
                let _ = sender.send(FollowItem::Missed(count)).await;
            }
        });
        receiver
    }
}

fn quick() -> Limits {
    Limits { connections: 2, request_bytes: 256, root_request_bytes: 256, idle: Duration::from_millis(300) }
}

/// Runs `test` in a thread of its own against a served socket.
async fn served(limits: Limits, test: impl FnOnce(&Path) + Send + 'static) {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("deep/er/s.sock");
    let server = Server::bind(&socket, None).expect("binds").with_limits(limits);
    let serving = tokio::spawn(server.serve(Arc::new(Agent)));
    let path = socket.clone();
    tokio::task::spawn_blocking(move || test(&path)).await.expect("the test");
    serving.abort();
    let _ = serving.await;
    assert!(!socket.exists(), "the socket is left behind");
}

fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = Std::connect(socket).expect("connects");
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_answered_and_refusals_keep_their_kind() {
    served(Limits::default(), |socket| {
        let mut client = Client::connect(socket).expect("connects");
        let Ok(Response::Status(status)) = client.ask(&Request::Status) else { panic!("no status") };
        assert_eq!(status.name, "h1");
        let error = client.ask(&Request::PuRemove { pu: "web".into() }).expect_err("refused");
        assert!(matches!(&error, ClientError::Refused(error) if error.kind == ErrorKind::NotFound));
        assert_eq!(error.to_string(), "no PU \"web\"");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_streams_until_the_agent_ends() {
    served(Limits::default(), |socket| {
        let mut seen = Vec::new();
        let mut client = Client::connect(socket).expect("connects");
        let followed = client.follow(&Request::Follow, |response| {
            seen.push(response);
            std::ops::ControlFlow::Continue(())
        });
        followed.expect("followed");
        assert_eq!(seen, [Response::Missed(1), Response::Missed(2), Response::Missed(3)]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_the_agent_lives() {
    served(quick(), |socket| {
        assert_eq!(
            raw(socket, b"hello\n"),
            "{\"error\":{\"kind\":\"invalid\",\"message\":\"not a request: expected value at line 1 column 1\"}}\n"
        );
        assert!(raw(socket, b"{\"op\":\"reboot\"}\n").contains("unknown variant `reboot`"));
        assert!(raw(socket, b"{\"op\":\"pu_remove\",\"pu\":7}\n").contains("invalid type"));
        assert!(raw(socket, b"\xff\xfe\x00\n").contains("not a request"));
        assert!(raw(socket, &[b'['; 200]).is_empty(), "a line without an end is no request");
        assert!(raw(socket, b"\n").contains("not a request"));
        assert_eq!(
            raw(socket, &[b'a'; 4096]),
            "{\"error\":{\"kind\":\"invalid\",\"message\":\"the request is longer than 256 bytes\"}}\n"
        );
        let mut nested = b"{\"a\":".to_vec();
        nested.extend([b'['; 240]);
        nested.push(b'\n');
        assert!(raw(socket, &nested).contains("recursion limit"));
        assert!(matches!(Client::connect(socket).expect("connects").ask(&Request::Status), Ok(Response::Status(_))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_surplus_connections_are_ended() {
    served(quick(), |socket| {
        let mut silent = [Std::connect(socket).expect("first"), Std::connect(socket).expect("second")];
        assert!(raw(socket, b"").contains("too many connections"));
        for stream in &mut silent {
            assert_eq!(stream.read(&mut [0; 1]).expect("is ended"), 0);
        }
        std::thread::sleep(Duration::from_millis(50));
        assert!(matches!(Client::connect(socket).expect("connects").ask(&Request::Status), Ok(Response::Status(_))));
    })
    .await;
}

#[tokio::test]
async fn a_living_agent_keeps_its_socket_and_a_dead_ones_is_replaced() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("s.sock");
    let first = Server::bind(&socket, None).expect("binds");
    let error = Server::bind(&socket, None).expect_err("busy");
    assert_eq!(
        error.to_string(),
        format!("another agent already listens on {}; stop it first, or set another `paths.socket`", socket.display())
    );
    drop(first);
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket whose owner died"));
    assert!(socket.exists());
    drop(Server::bind(&socket, None).expect("replaces the dead one"));

    std::fs::write(&socket, "precious").expect("written");
    assert!(matches!(Server::bind(&socket, None), Err(BindError::NoSocket(_))));
    assert_eq!(std::fs::read_to_string(&socket).expect("still there"), "precious");
}

#[tokio::test]
async fn only_owner_and_group_may_connect() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("s.sock");
    let mode = |path: &Path| std::fs::metadata(path).expect("exists").permissions().mode() & 0o777;
    let server = Server::bind(&socket, None).expect("binds");
    assert_eq!(mode(&socket), 0o600);
    drop(server);
    let own = Group::from_gid(nix::unistd::getgid()).expect("group database").expect("own group").name;
    let server = Server::bind(&socket, Some(&own)).expect("binds");
    assert_eq!(mode(&socket), 0o660);
    drop(server);
    assert!(matches!(Server::bind(&socket, Some("no-such-group")), Err(BindError::NoGroup(_))));
    assert!(!socket.exists());
}

#[test]
fn membership_follows_the_account_database() {
    let root = Caller { uid: 0, gid: 0, pid: None };
    assert!(is_member(&root, Gid::from_raw(0)));
    let stranger = Caller { uid: 4_000_000, gid: 4_000_000, pid: None };
    assert!(!is_member(&stranger, Gid::from_raw(0)));
    assert!(is_member(&Caller { gid: 77, ..stranger }, Gid::from_raw(77)));
}

#[test]
fn requests_read_as_they_are_documented() {
    let tags = BTreeSet::from([("app".to_owned(), "web".to_owned())]);
    let request =
        Request::PuAdd { target: PuTarget::Command, name: None, namespace: None, tags, token: None, incomplete: false };
    let json = serde_json::to_string(&request).expect("serialises");
    assert_eq!(json, r#"{"op":"pu_add","target":"command","name":null,"namespace":null,"tags":[["app","web"]]}"#);
    assert_eq!(serde_json::from_str::<Request>(&json).expect("parses"), request);
}
