use super::*;
use crate::identity::test_support::*;

#[test]
fn certificates_are_small() {
    let own = enforcer(&authority("Acme Enforcer CA"), &options("host-0001"));
    assert!(own.certificate().len() <= 420, "{} bytes", own.certificate().len());
}

#[test]
fn the_map_value_holds_bytes_and_hash() {
    let own = enforcer(&authority("Test CA"), &options("h1"));
    let prepared = prepare(&own, &profile(own.id(), prekey())).unwrap();
    let value = prepared.map_value();
    assert_eq!(&value.bytes[..value.len as usize], prepared.bytes());
    assert!(value.bytes[value.len as usize..].iter().all(|byte| *byte == 0));
    let hash = hash(prepared.bytes());
    assert_eq!(value.hash_index.to_be_bytes(), hash[..4]);
    assert_eq!(value.hash_mac.to_be_bytes(), hash[4..12]);
    assert_eq!((prepared.expires(), prepared.epoch()), (NOW + 300, prekey().epoch));
}

#[test]
fn the_checksum_is_the_kernels() {
    let folded = |mut sum: u64| {
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    };
    let own = enforcer(&authority("Test CA"), &options("h1"));
    // Lengths of either parity.
    for pu in ["a", "ab", "abc", "abcd"] {
        let prepared = prepare(&own, &TrustProfile { pu: pu.into(), ..profile(own.id(), prekey()) }).unwrap();
        let words = prepared.bytes().chunks(2).map(|pair| [pair[0], pair.get(1).copied().unwrap_or(0)]);
        let expected = folded(words.map(|pair| u64::from(u16::from_be_bytes(pair))).sum());
        let found = folded(prepared.map_value().csum.into());
        // RFC 1071 section 2(B): summed in the machine's order, the bytes come out in network order.
        assert_eq!(found.to_ne_bytes(), expected.to_be_bytes());
    }
}

#[test]
fn a_profile_too_large_is_refused_by_the_byte() {
    let own = enforcer(&authority("Test CA"), &options("h1"));
    let sized = |len: usize, handle| {
        let mut profile = TrustProfile { handle, issued_ms: 999, ..profile(own.id(), prekey()) };
        profile.tags.insert("big".into(), ["x".repeat(len)].into());
        prepare(&own, &profile)
    };
    let fits = (0..1200).take_while(|len| sized(*len, 65535).is_ok()).last().unwrap();
    assert_eq!(sized(fits, 65535).unwrap().bytes().len(), CREDENTIAL_MAX);
    // A renewal may get a longer handle.
    assert!(sized(fits, 1).is_ok());
    assert!(sized(fits + 1, 1).is_err());
    let error = sized(fits + 3, 65535).unwrap_err();
    let PrepareError::TooLarge { pu, over, largest } = &error else { panic!("{error}") };
    assert_eq!((pu.as_str(), *over), ("web-1", 3));
    let expected = [
        (format!("big={}", "x".repeat(fits + 3)), fits + 3 + 7),
        ("image=registry.acme.example/web:1.2.3".into(), 40),
        ("user=prod".into(), 12),
    ];
    assert_eq!(largest[..], expected);
    let text = error.to_string();
    assert!(text.contains("is 3 bytes too large") && text.contains("`big=xxx") && text.contains("…`"), "{text}");
    assert!(text.len() < 400, "{text}");
    assert!(matches!(sized(100_000, 1), Err(PrepareError::TooLarge { over: 99_000.., .. })));
}

#[test]
fn the_room_for_tags_is_what_fits() {
    let own = enforcer(&authority("Test CA"), &options("h1"));
    let mut profile = TrustProfile { handle: 1, issued_ms: 999, ..profile(own.id(), prekey()) };
    let room = room_for_tags(&own, &profile).unwrap();
    assert!(room > 300, "{room}");
    profile.tags = [("big".to_owned(), ["x".repeat(room - 6)].into())].into();
    assert_eq!(prepare(&own, &profile).unwrap().bytes().len(), CREDENTIAL_MAX - 4);
    assert_eq!(room_for_tags(&own, &profile).unwrap(), room);
}

#[test]
fn only_its_own_profiles_are_signed() {
    let authority = authority("Test CA");
    let (one, two) = (enforcer(&authority, &options("h1")), enforcer(&authority, &options("h2")));
    let error = prepare(&one, &profile(two.id(), prekey())).unwrap_err();
    assert_eq!(error, PrepareError::OtherEnforcer(two.id().to_string()));
}

#[test]
fn malformed_profiles_are_not_signed() {
    let own = enforcer(&authority("Test CA"), &options("h1"));
    let profile = TrustProfile { namespace: "acme".into(), ..profile(own.id(), prekey()) };
    assert_eq!(prepare(&own, &profile), Err(PrepareError::Profile(ProfileError::Namespace("acme".into()))));
}
