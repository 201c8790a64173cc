//! What one end has forgotten is said again; what a receiving interface has merged comes apart again.

use super::*;

#[test]
fn a_server_that_forgot_gives_the_datagram_back_and_nothing_is_lost() -> Result<()> {
    let stage = Stage::new("dgretry")?;
    for to in addresses(&stage.b) {
        let server = serve(&stage.server, &to, PORT)?;
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
        let mut expected = vec![8];
        for size in [1, 8, 1196] {
            stage.b.enforcer(&["peers", "--forget"])?.ok()?;
            let before = stage.counters()?;
            assert_eq!(
                exchange(&stage.client, &to, PORT, "connected", size, 1)?,
                WELL,
                "{size}: {}",
                stage.a.enforcer_log()
            );
            expected.push(size);
            assert_eq!(heard(&server), expected, "once");
            let counted = stage.since(&before)?;
            assert_eq!((counted[1].packets_out("retry"), counted[1].packets_in("confirm")), (1, 1), "{size}");
            refusals(&stage.a, &before[0], &[])?;
            refusals(&stage.b, &before[1], &[("unknown_session", "in", 1)])?;
        }
        // What was sent before the first one came back waits with it.
        stage.b.enforcer(&["peers", "--forget"])?.ok()?;
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 100, 20)?, Exchange { back: 20, errno: 0 });
        expected.extend([100; 20]);
        assert_eq!(heard(&server), expected);
        // The pair has met again, and resumes.
        let before = stage.counters()?;
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
        let counted = stage.since(&before)?;
        assert_eq!((counted[1].packets_in("hello"), counted[1].packets_in("resume")), (0, 1));
    }
    Ok(())
}

#[test]
fn a_server_that_forgot_gives_back_what_went_ahead_and_the_next_one_arrives() -> Result<()> {
    let stage = Stage::new("dgahead")?;
    for to in addresses(&stage.b) {
        let server = serve(&stage.server, &to, PORT)?;
        assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
        for size in [1400, 3000] {
            stage.b.enforcer(&["peers", "--forget"])?.ok()?;
            let before = stage.counters()?;
            let lost = Exchange { back: 0, errno: 110 };
            assert_eq!(exchange(&stage.client, &to, PORT, "connected", size, 1)?, lost, "it found no flow there");
            refusals(&stage.a, &before[0], &[])?;
            refusals(&stage.b, &before[1], &[("unknown_session", "in", 1), ("protocol_denied", "in", 1)])?;
            assert_eq!(exchange(&stage.client, &to, PORT, "connected", size, 1)?, WELL, "met again meanwhile");
        }
        assert_eq!(heard(&server), [8, 1400, 3000]);
    }
    Ok(())
}

/// What comes to this host is kept for a while at its interface, and merged with what comes after it; also for sockets that do not ask for it,
/// if `forwarding`.
fn merge(host: &Host, forwarding: bool) -> Result<()> {
    let (eth0, on) = ("/sys/class/net/eth0", if forwarding { "on" } else { "off" });
    let wait = format!(
        "mount -t sysfs sysfs /sys && echo 20000000 >{eth0}/gro_flush_timeout && echo 5 >{eth0}/napi_defer_hard_irqs"
    );
    host.exec(&["unshare", "-m", "sh", "-c", &wait])?.ok()?;
    host.exec(&["ethtool", "-K", "eth0", "gro", "on", "rx-udp-gro-forwarding", on])?.ok().map(drop)
}

#[test]
fn merged_datagrams_come_apart_again() -> Result<()> {
    let stage = Stage::new("dggro")?;
    for (how, forwarding) in [("gro", false), ("answers", true)] {
        merge(&stage.b, forwarding)?;
        for to in addresses(&stage.b) {
            let server = serve_as(&stage.server, &to, PORT, &[how])?;
            assert_eq!(exchange(&stage.client, &to, PORT, "connected", 8, 1)?, WELL);
            let before = stage.counters()?;
            let all = [100, 1000, 1400];
            for size in all {
                for _ in 0..2 {
                    let seen = exchange(&stage.client, &to, PORT, "connected", size, 40)?;
                    let refused = stage.since(&before)?[1].refusals().len();
                    assert_eq!(seen, Exchange { back: 40, errno: 0 }, "{how} {size}: {refused} reasons");
                }
            }
            let expected: Vec<usize> = all.into_iter().flat_map(|size| [size; 80]).collect();
            assert_eq!(heard(&server)[1..], expected, "each by itself, and nothing more");
            for (host, before) in [(&stage.a, &before[0]), (&stage.b, &before[1])] {
                refusals(host, before, &[])?;
            }
        }
    }
    // Nobody takes them apart.
    let before = stage.b.counters()?;
    stage.b.kill9_enforcer()?;
    std::thread::sleep(tests::AGENT_TIMEOUT + Duration::from_millis(300));
    let to = stage.b.v4().to_string();
    let server = serve(&stage.server, &to, PORT)?;
    assert_eq!(exchange(&stage.client, &to, PORT, "connected", 100, 40)?.back, 0);
    assert!(heard(&server).is_empty());
    assert_eq!(exchange(&stage.client, &to, PORT, "connected", 100, 1)?, WELL, "one by itself is not merged");
    stage.b.restart_enforcer()?;
    let refused = (&stage.b.counters()? - &before).verdicts_in("datagram_merged");
    assert!(refused >= 1, "{refused}");
    Ok(())
}

#[test]
fn under_load_a_first_contact_needs_a_cookie() -> Result<()> {
    let stage = Stage::new("dgcookie")?;
    let servers = [serve(&stage.server, "0.0.0.0", PORT)?, serve(&stage.server, "::", PORT + 1)?];
    stage.b.start_enforcer("datapath.hello_load = 1")?;
    let [v4, v6] = addresses(&stage.b);
    let before = stage.counters()?;
    // One is no load yet; the next is asked, once, and nothing is lost.
    assert_eq!(exchange(&stage.client, &v4, PORT, "connected", 8, 1)?, WELL);
    assert_eq!(exchange(&stage.client, &v6, PORT + 1, "connected", 1196, 1)?, WELL, "{}", stage.a.enforcer_log());
    let counted = stage.since(&before)?;
    assert_eq!((counted[1].packets_in("hello"), counted[1].packets_out("challenge")), (2, 1));
    refusals(&stage.a, &before[0], &[])?;
    refusals(&stage.b, &before[1], &[("challenged", "in", 1)])?;
    assert_eq!(servers.each_ref().map(heard), [vec![8], vec![1196]]);
    Ok(())
}
