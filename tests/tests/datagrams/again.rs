//! What one end has forgotten is said again.

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
