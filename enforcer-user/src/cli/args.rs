//! The arguments.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

use crate::admin::Secret;
use crate::config::{DEFAULT_FILE, DEFAULT_SOCKET};

/// Identity-based zero-trust enforcement: the host agent and its command line.
#[derive(Debug, Parser)]
#[command(name = "enforcer", version, max_term_width = 100)]
pub(super) struct Args {
    /// The agent's admin socket.
    #[arg(long, global = true, value_name = "PATH", env = "ENFORCER_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the agent.
    Run {
        #[command(flatten)]
        config: ConfigArg,
        /// Go back to what was in force before, unless `enforcer confirm` comes within this time, such as 60s. Exits with 5 then.
        #[arg(long, value_name = "DURATION", value_parser = trial)]
        confirm: Option<Duration>,
        /// For `enforcer upgrade`: take over from an agent that still runs, and tell on standard input how that goes.
        #[arg(long, hide = true, conflicts_with = "confirm")]
        succeed: bool,
    },
    /// Before the network is up: load the programs, so that what is configured as `[[workload]]` is denied until an agent runs.
    ///
    /// For the service's ExecStartPre. Needs neither keys nor policy. Where an agent has run since the host started, what it
    /// left stays as it is, and is attached to interfaces that came since.
    Boot {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Keep what an agent started with `run --confirm` has put in force.
    Confirm,
    /// Check a configuration file; with --json, print what would be in force.
    CheckConfig {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// The authority of a small installation.
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Run a command as a PU.
    ///
    /// The command runs in a cgroup of its own. Signals are passed on to it. The PU lives until its last process has
    /// ended, those that went to the background included. Exits with the command's code; 128+n if signal n killed it;
    /// 125 if the PU could not be made, 126 if the command cannot be run, 127 if it does not exist.
    Exec(ExecArgs),
    /// Run the log-in shell of the user who called sudo, in a session of the token in ENFORCER_USER_TOKEN.
    ///
    /// For sudoers and profile.d: takes no arguments and gives no rights but the tags that the token proves. Exits as `exec` does.
    Login,
    /// Make something that already runs a PU, or end that.
    Pu {
        #[command(subcommand)]
        command: PuCommand,
    },
    /// How the agent fares.
    Status,
    /// Every PU of this host.
    Pus {
        /// `wide`: every tag on a line of its own, with its sources and whether the profile carries it.
        #[arg(short, long, value_enum)]
        output: Option<PusOutput>,
    },
    /// Every enforcer met, with its sessions and PUs.
    Peers {
        /// Forget this enforcer, or all of them, so that the next contact is a first contact.
        #[arg(long, value_name = "ENFORCER", num_args = 0..=1, default_missing_value = "")]
        forget: Option<String>,
        /// Forget sessions only: credentials that were checked need not be checked again.
        #[arg(long, requires = "forget")]
        keep_checked: bool,
    },
    /// Live flows and recent records.
    Flows(FlowsArgs),
    /// Observe mode: everything allowed, everything recorded. Without on or off, say what is observed.
    Observe {
        #[command(subcommand)]
        command: Option<ObserveCommand>,
    },
    /// The policy in force, or files that may become it.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// What this kernel and host can do, and what each lack costs. Exits with 1 if something needed is missing.
    Doctor {
        #[command(flatten)]
        config: ConfigArg,
        /// Write everything that a bug report needs into this new file instead: versions, checks, configuration, state,
        /// counters, log. It holds no keys, tokens, addresses of connections, or tags; look at it before you send it.
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
    /// Every reason for which something is refused, what it means and what to do.
    Reasons,
    /// Let this version of the enforcer, or another, take over from the agent that runs.
    ///
    /// Live connections go on; first contacts wait for the new agent. If it cannot take over or is not ready in time, the
    /// former agent and its programs are put back, and the exit code is not 0. Under a service manager it is the manager
    /// that starts agents: there only --check is for you.
    Upgrade(UpgradeArgs),
    /// Remove everything from the kernel: programs, links, maps, the TAP device, cgroups. The agent must be stopped.
    Unload {
        #[command(flatten)]
        config: ConfigArg,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ConfigArg {
    /// The configuration file.
    #[arg(long = "config", value_name = "FILE", default_value = DEFAULT_FILE)]
    pub file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    pub config: ConfigArg,
    /// Only say whether it could take over; nothing is changed.
    #[arg(long)]
    pub check: bool,
    /// The `enforcer` that is to take over; this one if left out.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    pub binary: Option<PathBuf>,
    /// How long it may take until it is ready.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Make an authority: ca.crt and ca.key.
    Init {
        /// Directory for both files.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        /// Its name, for people.
        #[arg(long, default_value = "enforcer authority")]
        name: String,
        /// How long it lasts.
        #[arg(long, value_name = "DURATION", default_value = "10years", value_parser = super::ca::lifetime)]
        lifetime: Duration,
    },
    /// Issue a certificate to a host's enforcer: NAME.crt and NAME.key.
    Issue(IssueArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct IssueArgs {
    /// The enforcer's name (`name` in its configuration, by default the host's name).
    #[arg(long)]
    pub name: String,
    /// Directory of the authority.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Directory for both files; the authority's if left out.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How long the certificate lasts.
    #[arg(long, value_name = "DURATION", default_value = "1year", value_parser = super::ca::lifetime)]
    pub lifetime: Duration,
    /// Trust domain of the SPIFFE id.
    #[arg(long, value_name = "DOMAIN", default_value = "enforcer")]
    pub trust_domain: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// The rules in force.
    Show,
    /// Check policy files, or directories of them, without putting them in force.
    Check {
        /// The files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Which rule decides a connection, and why the others do not.
    Explain(ExplainArgs),
    /// Which pairs of known identities another policy judges otherwise, on which ports, by which rules. Exits with 1 if
    /// there are any.
    Diff(super::policy::DiffArgs),
    /// What policy files would have made of recorded connections.
    Simulate(super::policy::SimulateArgs),
    /// Put policy files into the agent's watched directory and in force: all of them, or none. With --dry-run, show which
    /// pairs would be judged otherwise, and exit with 1 if there are any.
    Apply(super::policy::ApplyArgs),
    /// Turn Kubernetes manifests into policies of the same meaning: NetworkPolicy and ClusterNetworkPolicy, with the
    /// Namespaces and workloads they speak of.
    Import(super::policy::ImportArgs),
    /// The JSON Schema of policy files, for editors.
    Schema,
    /// From flow records, the smallest readable set of tag rules that allows what was recorded.
    ///
    /// The output is a policy file: every rule says how many connections it covers and what it would newly allow.
    Suggest(SuggestArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum ObserveCommand {
    /// Stop enforcing: what policy refuses to PUs of this host is let through and recorded.
    On {
        /// Only in this namespace, with all below it.
        #[arg(long, value_name = "PATH")]
        namespace: Option<String>,
    },
    /// Enforce again; what policy does not allow is cut.
    Off {
        /// Only in this namespace, with all below it.
        #[arg(long, value_name = "PATH")]
        namespace: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct SuggestArgs {
    /// Files of flow records, also of several hosts; `-` for standard input. Those of this host's agent if left out.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub records: Vec<PathBuf>,
    /// Only for connections with an end in this namespace.
    #[arg(long, value_name = "PATH")]
    pub namespace: Option<String>,
    /// Write the policy to this file.
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The agent's configuration file, which says where it writes records.
    #[arg(long = "config", value_name = "FILE", default_value = DEFAULT_FILE)]
    pub config: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// Who connects: tags such as "app=web user=prod", or an address without an enforcer.
    #[arg(long, value_name = "TAGS")]
    pub from: String,
    /// To whom: tags, or an address without an enforcer.
    #[arg(long, value_name = "TAGS")]
    pub to: String,
    /// To which port (of ICMP: type * 256 + code).
    #[arg(long)]
    pub port: u16,
    /// By which protocol.
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    pub proto: Protocol,
    /// Namespace of who connects.
    #[arg(long, value_name = "PATH", default_value = "/default")]
    pub from_namespace: String,
    /// Namespace of who is connected to.
    #[arg(long, value_name = "PATH", default_value = "/default")]
    pub to_namespace: String,
    /// Explain by these policy files instead of the rules in force.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Icmp6,
}

#[derive(Debug, clap::Args)]
pub(super) struct PuArgs {
    /// A tag of the Trust Profile; may be given many times, a key also.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    pub tags: Vec<(String, String)>,
    /// Name for people and records.
    #[arg(long)]
    pub name: Option<String>,
    /// Namespace, such as /acme/prod; the configured one if left out.
    #[arg(long)]
    pub namespace: Option<String>,
}

impl PuArgs {
    pub fn tag_set(&self) -> BTreeSet<(String, String)> {
        self.tags.iter().cloned().collect()
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    pub pu: PuArgs,
    /// A user's token (OIDC): its claims become @user tags until it ends. Anybody on this host can see it in the process
    /// list: better use --as-user-file, or the variable ENFORCER_USER_TOKEN, which the command does not get to see.
    #[arg(long, value_name = "TOKEN", conflicts_with = "as_user_file")]
    pub as_user: Option<Secret>,
    /// File with such a token.
    #[arg(long, value_name = "FILE")]
    pub as_user_file: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(super) enum PuCommand {
    /// Make a cgroup, or what is behind an interface, a PU.
    Add {
        #[command(flatten)]
        pu: PuArgs,
        #[command(flatten)]
        target: TargetArgs,
        /// More tags follow with `enforcer pu tag`: until it is complete it may not communicate.
        #[arg(long)]
        incomplete: bool,
    },
    /// Change its tags while it runs.
    ///
    /// Its profile is signed again, and its live connections are judged again at both ends; those that are no longer allowed
    /// are cut.
    Tag {
        /// Its id or name (`enforcer pus`).
        pu: String,
        /// Give the key this value instead of those it had; may be repeated, for a key with several values too.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Take the key away; may be repeated.
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// All tags are there: a PU added with --incomplete may communicate from now on.
        #[arg(long)]
        complete: bool,
    },
    /// It is no longer a PU; its processes become unmanaged.
    Rm {
        /// Its id or name (`enforcer pus`).
        pu: String,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct TargetArgs {
    /// A cgroup v2 directory, with all below it.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// The host's end of a veth.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct FlowsArgs {
    /// Print records as they come, until interrupted; with --json one object a line.
    #[arg(long)]
    pub follow: bool,
    /// Most live flows to print.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub limit: usize,
    /// Read the pinned maps instead of asking the agent, which need not run.
    #[arg(long, conflicts_with = "follow")]
    pub offline: bool,
    /// With --offline: the agent's configuration file.
    #[arg(long = "config", value_name = "FILE", default_value = DEFAULT_FILE, requires = "offline")]
    pub config: PathBuf,
}

/// How long a trial may take.
fn trial(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 60s"))?;
    let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
    if (shortest..=longest).contains(&length) { Ok(length) } else { Err("must be between 1s and 1day".into()) }
}

pub(super) fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE, such as app=web".into()),
    }
}

/// How PUs are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PusOutput {
    /// Every tag.
    Wide,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_tags_value_may_hold_an_equals_sign() {
        assert_eq!(tag("a=b=c"), Ok(("a".into(), "b=c".into())));
        for wrong in ["", "a", "=b", "a="] {
            assert!(tag(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn forget_takes_a_name_or_none() {
        let forget = |line: &str| match Args::try_parse_from(line.split(' ')).expect("parses").command {
            Command::Peers { forget, keep_checked } => (forget, keep_checked),
            other => panic!("{other:?}"),
        };
        assert_eq!(forget("enforcer peers"), (None, false));
        assert_eq!(forget("enforcer peers --forget"), (Some(String::new()), false));
        assert_eq!(forget("enforcer peers --forget h2"), (Some("h2".into()), false));
        assert_eq!(forget("enforcer peers --forget --keep-checked"), (Some(String::new()), true));
    }
}
