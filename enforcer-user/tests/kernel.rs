//! The kernel side's life, on a real kernel: each test in a network namespace, mount namespace and cgroup of its own.
//!
//! Needs root.

mod place;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::abi::Config;
use common::flow::{Flow, FlowKey};
use common::identity::{Network, Session};
use common::verdict::{Interval, Pair};
use enforcer_user::load::{
    Interfaces, Kernel, LoadError, LoadOptions, MapSizes, Placed, UnloadOptions, XdpMode, XdpState, unload,
};
use enforcer_user::map_write::{ConfigWriter, MapWriteError, Maps, Networks, Pairs, Prefix, Pus, patiently};
use enforcer_user::tap::{Tap, TapError};
use enforcer_user::workload::adopt;
use enforcer_user::{link_net, sys};
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use place::{TAP, ip, isolated};

/// Names of the programs in a tcx chain, first to last.
fn chain(interface: &str, direction: aya::programs::TcAttachType) -> Vec<String> {
    // A program can be replaced between the list of ids and the look at one of them: that list is void, not empty.
    let query = || aya::programs::SchedClassifier::query_tcx(interface, direction);
    let (_, programs) = (0..50).find_map(|_| query().ok()).expect("a list whose programs all live");
    programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect()
}

use aya::programs::TcAttachType::{Egress, Ingress};

#[test]
fn load_attaches_everywhere_and_unload_leaves_nothing() {
    isolated(|place| {
        let interfaces = || link_net::list().unwrap().into_iter().map(|found| found.name).collect::<Vec<_>>();
        let interfaces_before = interfaces();
        let settings = || {
            ["route_localnet", "accept_local", "rp_filter"]
                .map(|name| fs::read_to_string(format!("/proc/sys/net/ipv4/conf/lo/{name}")).unwrap())
        };
        let settings_before = settings();
        let mut kernel = Kernel::open(&place.options()).unwrap();
        assert!(matches!(Kernel::open(&place.options()), Err(LoadError::Busy { .. })), "two agents at once");
        assert!(matches!(unload(&place.unload()), Err(LoadError::Busy { .. })), "unload under an agent");
        let names: Vec<_> = kernel.interfaces().map(|attached| attached.interface.name.clone()).collect();
        assert_eq!(names, ["lo", "v1", "v0"]);
        for attached in kernel.interfaces() {
            assert!(matches!(&attached.xdp, XdpState::Off(reason) if reason.contains("native XDP would cost")));
        }
        let tap = Tap::open(TAP).unwrap();
        kernel.attach_tap(&tap).unwrap();
        assert_eq!(kernel.attach_interface(TAP).unwrap(), None, "the TAP is no ordinary interface");
        let v0 = link_net::by_name("v0").unwrap().unwrap().index;
        kernel.attach_pu_interface(v0).unwrap();

        assert_eq!(chain("lo", Ingress), ["tc_ingress"]);
        assert_eq!(chain("lo", Egress), ["tc_egress"]);
        assert_eq!(chain("v0", Ingress), ["tc_pu_ingress", "tc_ingress"]);
        assert_eq!(chain("v0", Egress), ["tc_egress", "tc_pu_egress"]);
        assert_eq!(chain(TAP, Ingress), ["tap_inject"]);
        assert_eq!(chain(TAP, Egress), [""; 0]);
        let links = place.links();
        let cgroup_id = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&place.cgroup).unwrap());
        assert_eq!((links["sock_create"].target, links["sock_ops"].target), (cgroup_id, cgroup_id));
        assert_eq!(links["sock_option"].target, cgroup_id);
        assert_eq!(links["sock_ingress"].target, cgroup_id);
        assert_eq!(links.len(), 4 + 3 + 3 * 2 + 2 + 1);
        assert_eq!(settings()[..2], ["1\n", "1\n"]);
        assert_eq!(fs::read_dir(place.bpffs.join("v1/progs")).unwrap().count(), 21);

        kernel.detach_pu_interface(v0).unwrap();
        assert_eq!(chain("v0", Ingress), ["tc_ingress"]);
        assert!(kernel.detach_interface(v0).unwrap());
        assert_eq!(chain("v0", Ingress), [""; 0]);
        assert!(!kernel.detach_interface(v0).unwrap());
        assert!(kernel.attach_interface("v0").unwrap().is_some());
        assert!(matches!(kernel.attach_interface("nope"), Err(LoadError::NoInterface(name)) if name == "nope"));

        let programs: Vec<u32> = links.values().map(|link| link.program).collect();
        let maps: Vec<u32> = place.map_ids().into_values().collect();
        fs::create_dir_all(place.cgroup.join("pus/a/b")).unwrap();
        drop((kernel, tap));
        assert_eq!(chain("lo", Ingress), ["tc_ingress"], "the end of the agent changes nothing");

        let unloaded = unload(&place.unload()).unwrap();
        assert_eq!((unloaded.links, unloaded.programs, unloaded.tap, unloaded.cgroups), (14, 21, true, 3));
        assert_eq!(unloaded.maps, maps.len());
        assert_eq!(interfaces(), interfaces_before);
        assert_eq!(settings(), settings_before);
        assert!(!place.bpffs.exists() && !place.cgroup.join("pus").exists());
        for interface in ["lo", "v0", "v1"] {
            assert_eq!((chain(interface, Ingress).len(), chain(interface, Egress).len()), (0, 0));
        }
        // The kernel frees programs and maps a moment after their last user.
        let gone = || {
            aya::programs::loaded_programs().flatten().all(|program| !programs.contains(&program.id()))
                && aya::maps::loaded_maps().flatten().all(|map| !maps.contains(&map.id()))
        };
        assert!(until(gone), "programs or maps are left");
        assert_eq!(unload(&place.unload()).unwrap(), Default::default(), "nothing to remove is no error");
    });
}

#[test]
fn restart_keeps_maps_and_links_and_is_never_without_a_program() {
    isolated(|place| {
        let kernel = Kernel::open(&place.options()).unwrap();
        let maps = Maps::open(&place.maps()).unwrap();
        maps.sessions.insert(&7, &Session { peer: 9, ..Session::default() }).unwrap();
        let (map_ids, links) = (place.map_ids(), place.links());
        drop((kernel, maps));

        // What an interface's re-creation leaves behind.
        ip("link del v1");
        ip("link add v0 type veth peer name v1");

        let kernel = Kernel::open(&LoadOptions {
            sizes: MapSizes { flows: Some(100), ..MapSizes::default() },
            ..place.options()
        })
        .unwrap();
        assert_eq!(place.map_ids(), map_ids);
        let kept: Vec<_> =
            kernel.kept_sizes().iter().map(|kept| (kept.map.as_str(), kept.pinned, kept.wanted)).collect();
        assert_eq!(kept, [("FLOWS", 200_000, 100)]);
        let now = place.links();
        for unchanged in ["sock_create", "sock_ops", "sock_option", "sock_ingress", "tc_ingress_if1", "tc_egress_if1"] {
            assert_eq!(now[unchanged].id, links[unchanged].id, "{unchanged}");
            assert_ne!(now[unchanged].program, links[unchanged].program, "{unchanged}");
        }
        let placed: Vec<_> =
            kernel.interfaces().map(|attached| (attached.interface.name.as_str(), attached.placed)).collect();
        assert_eq!(placed, [("lo", Placed::TakenOver), ("v1", Placed::Attached), ("v0", Placed::Attached)]);
        assert_eq!(now.len(), 4 + 3 + 3 * 2, "links of interfaces that are gone are removed");
        let maps = Maps::open(&place.maps()).unwrap();
        assert_eq!(maps.sessions.get(&7).unwrap().unwrap().peer, 9);
        drop(kernel);

        let fewer = LoadOptions { interfaces: Interfaces::Named(vec!["lo".into()]), ..place.options() };
        drop(Kernel::open(&fewer).unwrap());
        let names: HashSet<String> = place.links().into_keys().collect();
        let tracepoints = ["process_exec", "process_fork", "cgroup_mkdir"];
        let expected = ["sock_create", "sock_ops", "sock_option", "sock_ingress", "tc_ingress_if1", "tc_egress_if1"];
        let expected = expected.into_iter().chain(tracepoints).map(str::to_owned);
        assert_eq!(names, expected.collect::<HashSet<_>>(), "interfaces no longer meant are left");
        assert_eq!(chain("v0", Ingress), [""; 0]);
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn a_restart_under_observation_shows_no_gap() {
    isolated(|place| {
        let v0 = link_net::by_name("v0").unwrap().unwrap().index;
        let start = || Kernel::open(&place.options()).unwrap().attach_pu_interface(v0).unwrap();
        start();
        let (stop, stopped) = mpsc::channel::<()>();
        let namespace = fs::File::open("/proc/thread-self/ns/net").unwrap();
        let watcher = thread::spawn(move || {
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let mut looks = 0;
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                assert_eq!((chain("v0", Ingress).len(), chain("v0", Egress).len()), (2, 2));
                looks += 1;
            }
            looks
        });
        start();
        drop(stop);
        assert!(watcher.join().unwrap() > 10);
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn clsact_serves_where_tcx_is_missing() {
    isolated(|place| {
        let options = LoadOptions { clsact: true, ..place.options() };
        let tc = |arguments: &str| {
            String::from_utf8(Command::new("tc").args(arguments.split(' ')).output().unwrap().stdout).unwrap()
        };
        assert!(Command::new("tc").args("qdisc add dev v1 clsact".split(' ')).status().unwrap().success());
        let mut kernel = Kernel::open(&options).unwrap();
        let v0 = link_net::by_name("v0").unwrap().unwrap().index;
        kernel.attach_pu_interface(v0).unwrap();
        drop(kernel);
        let kernel = Kernel::open(&options).unwrap();
        assert!(kernel.interfaces().all(|attached| attached.placed == Placed::TakenOver));
        drop(kernel);
        let filters = tc("filter show dev v0 ingress");
        let at =
            |name: &str| filters.find(&format!("{name} direct-action")).unwrap_or_else(|| panic!("{name}: {filters}"));
        assert!(at(" tc_pu_ingress") < at(" tc_ingress"), "{filters}");
        assert_eq!(filters.matches("direct-action").count(), 2, "{filters}");
        unload(&place.unload()).unwrap();
        assert_eq!(tc("qdisc show dev v0").matches("clsact").count(), 0, "ours is removed");
        assert_eq!(tc("qdisc show dev v1").matches("clsact").count(), 1, "another's stays");
        assert_eq!(tc("filter show dev v1 ingress"), "");
    });
}

#[test]
fn xdp_follows_its_mode() {
    isolated(|place| {
        let open = |xdp| {
            let kernel = Kernel::open(&LoadOptions { xdp, ..place.options() }).unwrap();
            kernel.interfaces().map(|at| (at.interface.name.clone(), at.xdp.clone())).collect::<HashMap<_, _>>()
        };
        let native = open(XdpMode::Native);
        assert_eq!((&native["v0"], &native["v1"]), (&XdpState::Native, &XdpState::Native));
        assert_eq!(native["lo"], XdpState::Off("the loopback has no native XDP".into()));
        assert!(ip("-o link show v0").contains(" xdp"), "{}", ip("-o link show v0"));
        let id = place.links()[&format!("xdp_native_if{}", link_net::by_name("v0").unwrap().unwrap().index)].id;
        open(XdpMode::Native);
        assert_eq!(place.links()[&format!("xdp_native_if{}", link_net::by_name("v0").unwrap().unwrap().index)].id, id);
        let generic = open(XdpMode::Generic);
        assert_eq!((&generic["lo"], &generic["v0"]), (&XdpState::Generic, &XdpState::Generic));
        assert!(ip("-o link show v0").contains("xdpgeneric"));
        open(XdpMode::Off);
        assert!(!ip("-o link show v0").contains("xdp"));
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn bad_places_are_named() {
    isolated(|place| {
        let open = |change: &dyn Fn(&mut LoadOptions)| {
            let mut options = place.options();
            change(&mut options);
            Kernel::open(&options).unwrap_err()
        };
        let error = open(&|options| options.bpffs = place.base.join("plain"));
        assert!(matches!(&error, LoadError::NoBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        let error = open(&|options| options.cgroup = "/no/such/cgroup".into());
        assert!(error.to_string().contains("cgroup v2 is mounted at"), "{error}");
        let error = open(&|options| options.cgroup = "/tmp".into());
        assert!(error.to_string().starts_with("cgroup /tmp: not on a cgroup v2 file system"), "{error}");
        let error = open(&|options| options.object = b"\x7fELF nonsense".to_vec().into());
        assert!(matches!(&error, LoadError::Object(_)), "{error}");
        let error = open(&|options| options.interfaces = Interfaces::Named(vec!["eth77".into()]));
        assert!(error.to_string().starts_with("no interface eth77"), "{error}");
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn a_missing_bpffs_is_mounted_at_the_usual_place_only() {
    isolated(|place| {
        // This mount namespace is the test's own.
        let none: Option<&str> = None;
        mount(Some("none"), "/sys/fs/bpf", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let options = LoadOptions { bpffs: "/sys/fs/bpf/enforcer".into(), ..place.options() };
        drop(Kernel::open(&options).unwrap());
        assert!(Path::new("/sys/fs/bpf/enforcer/v1/maps/FLOWS").exists());
        unload(&UnloadOptions { bpffs: options.bpffs, ..place.unload() }).unwrap();
        assert!(!Path::new("/sys/fs/bpf/enforcer").exists());
    });
}

#[test]
fn a_pin_of_another_layout_is_refused() {
    isolated(|place| {
        fs::create_dir_all(place.maps()).unwrap();
        let wrong = aya::maps::HashMap::<_, u32, u32>::create(16, 1).unwrap();
        wrong.pin(place.maps().join("SESSIONS")).unwrap();
        let error = Kernel::open(&place.options()).unwrap_err();
        assert!(
            matches!(&error, LoadError::PinLayout { what: "a value size of", pinned: 4, expected, .. } if *expected as usize == size_of::<Session>()),
            "{error}"
        );
        assert!(error.to_string().contains("SESSIONS is pinned with a value size of 4"), "{error}");
        let error = Maps::open(&place.maps()).unwrap_err();
        assert!(matches!(error, MapWriteError::Missing { name: "PU_CGROUPS", .. }), "{error}");
        unload(&place.unload()).unwrap();
        drop(Kernel::open(&place.options()).unwrap());
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn a_busy_tap_is_named_and_an_orphaned_one_taken_over() {
    isolated(|_| {
        let tap = Tap::open(TAP).unwrap();
        assert!(matches!(Tap::open(TAP), Err(TapError::Busy(name)) if name == TAP));
        assert!(matches!(Tap::remove(TAP), Err(TapError::Busy(_))));
        let index = tap.index();
        drop(tap);
        let tap = Tap::open(TAP).unwrap();
        assert_eq!(tap.index(), index, "persistent");
        assert!(ip(&format!("-o addr show {TAP}")).is_empty(), "no addresses");
        assert!(ip(&format!("-o link show {TAP}")).contains(",UP"));
        drop(tap);
        assert!(Tap::remove(TAP).unwrap());
        assert!(!Tap::remove(TAP).unwrap());
        assert!(matches!(Tap::open("v0"), Err(TapError::Foreign(_, kind)) if kind == "veth"));
    });
}

#[test]
fn maps_are_written_and_read_back() {
    isolated(|place| {
        let kernel = Kernel::open(&place.options()).unwrap();
        let maps = Maps::open(&place.maps()).unwrap();
        let key = |port: u32| FlowKey { remote: [port, 0, 0, 0], ..FlowKey::default() };
        for port in 0..100_000 {
            maps.flows.insert(&key(port), &Flow { pu: port, ..Flow::default() }).unwrap();
        }
        let start = Instant::now();
        let mut seen = vec![false; 100_000];
        maps.flows
            .for_each(|key, flow| {
                assert_eq!(key.remote[0], flow.pu);
                seen[flow.pu as usize] = true;
            })
            .unwrap();
        let took = start.elapsed();
        assert!(seen.iter().all(|seen| *seen));
        assert!(took < Duration::from_millis(400), "100,000 flows took {took:?}");
        println!("100,000 flows in {took:?}");
        assert_eq!(maps.flows.fill().unwrap(), ("FLOWS", 100_000, 200_000));
        assert_eq!(maps.flows.cut(&key(5), common::drop_reason::Reason::Revoked).unwrap(), Some(true));
        assert_eq!(maps.flows.get(&key(5)).unwrap().unwrap().state, common::flow::CUT);
        assert_eq!(maps.flows.cut(&key(5), common::drop_reason::Reason::Revoked).unwrap(), Some(false));
        assert_eq!(maps.flows.cut(&key(500_000), common::drop_reason::Reason::Revoked).unwrap(), None);
        assert!(!maps.flows.replace(&key(500_000), &Flow::default()).unwrap());
        assert!(!maps.flows.insert_new(&key(5), &Flow::default()).unwrap());
        assert_eq!(maps.flows.retain(|key, _| key.remote[0] % 2 == 0).unwrap(), 50_000);

        let mut config = ConfigWriter::open(&place.maps()).unwrap();
        config.update(|config| config.generation = 3).unwrap();
        config.beat().unwrap();
        assert!(sys::monotonic_ns() - config.current().heartbeat_ns < 1_000_000_000);
        let adopted = ConfigWriter::open(&place.maps()).unwrap();
        assert_eq!(adopted.current(), &Config { generation: 3, ..*config.current() });

        maps.identity_docs.insert(3, br#"{"tags":["a=b"]}"#).unwrap();
        assert_eq!(maps.identity_docs.entries().unwrap(), [(3, br#"{"tags":["a=b"]}"#.to_vec())]);
        let error = maps.pu_docs.insert(4, &[b' '; 2045]).unwrap_err().to_string();
        assert!(error.starts_with("the description of PU 4 is 2045 bytes long, at most 2044 fit"), "{error}");

        let credential = |len| common::identity::Credential {
            hash_index: 1,
            len,
            hash_mac: 2,
            csum: 3,
            pad: 0,
            bytes: [0; common::wire::CREDENTIAL_MAX + 4],
        };
        let mut pus = Pus::open(&place.maps()).unwrap();
        pus.set_credential(5, 77, 1000, &credential(1), 10).unwrap();
        let first = pus.get(5).unwrap().unwrap();
        pus.set_credential(5, 77, 1000, &credential(2), 20).unwrap();
        let second = pus.get(5).unwrap().unwrap();
        assert_eq!((first.credential, second.credential, second.credential_until_ns), (10, 11, 20));
        pus.set_identity(5, 78, 1001).unwrap();
        assert_eq!(pus.entries().unwrap(), [(5, common::identity::Pu { identity: 78, handle: 1001, ..second })]);
        pus.remove(5).unwrap();
        assert_eq!(pus.get(5).unwrap(), None);
        assert!(matches!(pus.set_identity(0, 1, 1), Err(MapWriteError::Index { index: 0, .. })));
        assert!(matches!(pus.set_identity(u32::MAX, 1, 1), Err(MapWriteError::Index { .. })));

        let mut networks = Networks::open(&place.maps()).unwrap();
        let prefix = |text: &str, len| Prefix::new(text.parse().unwrap(), len).unwrap();
        let network = |external| Network { external, flags: 0 };
        let mut wanted = HashMap::from([(prefix("10.0.0.0", 8), network(1)), (prefix("fd00::", 8), network(2))]);
        assert_eq!(networks.replace(&wanted).unwrap(), 2);
        wanted.remove(&prefix("fd00::", 8));
        wanted.insert(prefix("0.0.0.0", 0), network(3));
        assert_eq!(Networks::open(&place.maps()).unwrap().replace(&wanted).unwrap(), 2);
        assert_eq!(Networks::open(&place.maps()).unwrap().current(), &wanted);

        assert_eq!(maps.stats.reasons().unwrap().len(), common::abi::REASON_STATS as usize);
        assert_eq!(maps.stats.losses().unwrap().len(), common::abi::LOSS_STATS as usize);
        assert_eq!(maps.stats.handshakes().unwrap().len(), common::abi::HANDSHAKE_STATS as usize);
        drop(kernel);
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn pairs_share_runs_and_survive_a_restart() {
    isolated(|place| {
        let kernel = Kernel::open(&place.options()).unwrap();
        let pair = |subject| Pair { subject, object: 1 };
        let run = |rule: u32, len: u32| -> Vec<Interval> {
            (0..len).map(|index| Interval { low: index * 2, high: index * 2, rule, ..Interval::default() }).collect()
        };
        let mut pairs = Pairs::open(&place.maps()).unwrap();
        for subject in 0..100 {
            assert!(pairs.write(pair(subject), &run(1, 10)).unwrap());
        }
        assert!(!pairs.write(pair(0), &run(1, 10)).unwrap(), "nothing changed");
        assert_eq!((pairs.usage().pairs, pairs.usage().runs, pairs.usage().intervals), (100, 1, 10));
        assert!(pairs.write(pair(0), &run(2, 600)).unwrap());
        assert!(pairs.write(pair(1), &[]).unwrap());
        assert_eq!(pairs.read(&pair(0)).unwrap().unwrap(), run(2, 600));
        assert_eq!(pairs.read(&pair(1)).unwrap().unwrap(), []);
        assert_eq!(pairs.read(&pair(1000)).unwrap(), None);
        drop(pairs);

        let mut pairs = Pairs::open(&place.maps()).unwrap();
        assert_eq!((pairs.usage().pairs, pairs.usage().runs, pairs.usage().intervals), (100, 3, 610));
        assert!(!pairs.write(pair(0), &run(2, 600)).unwrap(), "known from the former agent");
        assert!(matches!(
            pairs.write(pair(0), &run(3, 400)),
            Err(MapWriteError::Full { name: "INTERVALS", capacity: 1000 })
        ));
        assert_eq!(pairs.read(&pair(0)).unwrap().unwrap(), run(2, 600), "the former verdicts stay");
        assert!(pairs.remove(pair(0)).unwrap());
        assert!(!pairs.remove(pair(0)).unwrap());
        let start = Instant::now();
        let at_once = pairs.write(pair(0), &run(3, 900));
        assert!(matches!(at_once, Err(MapWriteError::Resting { name: "INTERVALS", .. })), "{at_once:?}");
        assert!(start.elapsed() < Duration::from_millis(500), "who holds a lock is not kept waiting");
        assert!(patiently(|| pairs.write(pair(0), &run(3, 900))).unwrap());
        assert!(start.elapsed() > Duration::from_millis(900), "released space rests");
        drop(kernel);
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn sockets_older_than_their_pu_are_adopted() {
    isolated(|place| {
        let kernel = Kernel::open(&place.options()).unwrap();
        let maps = Maps::open(&place.maps()).unwrap();
        let cgroup = place.cgroup.join("pus/web/worker");
        fs::create_dir_all(&cgroup).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        for inherited in [listener.as_fd(), client.as_fd()] {
            nix::fcntl::fcntl(inherited, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        }
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        let adopted = adopt::adopt(&place.cgroup.join("pus"), 42, &maps.pu_sockets).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((adopted.processes, adopted.sockets), (1, 2), "{adopted:?}");
        assert_eq!(adopted.listeners.len(), 1);
        assert_eq!(adopted.listeners[0].address, listener.local_addr().unwrap());
        assert_eq!(maps.pu_sockets.get(listener.as_fd()).unwrap(), Some(42));
        assert_eq!(maps.pu_sockets.get(client.as_fd()).unwrap(), Some(42));
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(maps.pu_sockets.get(other.as_fd()).unwrap(), None);
        assert!(maps.pu_sockets.remove(client.as_fd()).unwrap());
        assert!(matches!(
            adopt::adopt(Path::new("/no/such"), 1, &maps.pu_sockets),
            Err(adopt::AdoptError::Cgroup { .. })
        ));
        drop(kernel);
        unload(&place.unload()).unwrap();
    });
}

fn until(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}
