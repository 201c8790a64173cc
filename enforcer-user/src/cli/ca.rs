//! `enforcer ca init|issue`

use std::{process::ExitCode, time::Duration};

use serde_json::json;

use super::{
    Failure, Output,
    args::{CaCommand, IssueArgs},
};
use crate::identity::ca;

pub(super) fn run(command: CaCommand, out: &mut Output) -> Result<ExitCode, Failure> {
    match command {
        CaCommand::Init { dir, name, lifetime } => {
            ca::init(&dir, &name, lifetime).map_err(Failure::failed)?;
            let (certificate, key) = (dir.join(ca::CA_CERT), dir.join(ca::CA_KEY));
            if out.is_json() {
                out.json(&json!({ "certificate": certificate, "key": key }))?;
            } else {
                out.line(format!("{}  every host needs it (`identity.ca`)", certificate.display()))?;
                out.line(format!("{}  whoever has it can be anybody: keep it off the hosts", key.display()))?;
            }
        }
        CaCommand::Issue(args) => issue(args, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn issue(args: IssueArgs, out: &mut Output) -> Result<(), Failure> {
    let target = args.out.unwrap_or_else(|| args.dir.clone());
    let (certificate, key) =
        ca::issue(&args.dir, &args.name, &target, args.lifetime, &args.trust_domain).map_err(Failure::failed)?;
    if out.is_json() {
        out.json(&json!({ "certificate": certificate, "key": key }))?;
    } else {
        out.line(format!("{}  goes to {} (`identity.certificate`)", certificate.display(), args.name))?;
        out.line(format!("{}  goes there too, and nowhere else (`identity.key`)", key.display()))?;
    }
    Ok(())
}

/// A duration as people write it.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 90days or 1year"))
}
