//! Who is on stage: hosts, workloads with their tags, and the security officer's decree as policy.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::{Host, Lab, Proc, Workload};

use crate::step;

/// A workload before it is started.
struct Role {
    host: &'static str,
    name: &'static str,
    tags: &'static [&'static str],
    /// Ports on which it serves a page that says its name.
    ports: &'static [u16],
}

const ROLES: &[Role] = &[
    Role { host: "a", name: "hadoop-a", tags: &["app=hadoop", "user=prod"], ports: &[8020] },
    Role { host: "a", name: "myapp-a", tags: &["app=myapp", "user=prod"], ports: &[8080] },
    Role { host: "a", name: "myapp-test-a", tags: &["app=myapp", "user=test"], ports: &[] },
    Role { host: "a", name: "untagged-a", tags: &[], ports: &[] },
    Role { host: "a", name: "newcomer-a", tags: &["app=hadoop", "user=prod"], ports: &[] },
    Role { host: "b", name: "hadoop-b", tags: &["app=hadoop", "user=prod"], ports: &[8020, 9999] },
    Role { host: "b", name: "hadoop-test-b", tags: &["app=hadoop", "user=test"], ports: &[9000] },
    Role { host: "b", name: "myapp-b", tags: &["app=myapp", "user=prod"], ports: &[8080] },
    Role { host: "c", name: "alice-c", tags: &["user=alice", "group=myapp_users"], ports: &[8080] },
    Role { host: "c", name: "bob-c", tags: &["user=bob", "group=visitors"], ports: &[] },
    Role { host: "c", name: "carol-c", tags: &["user=carol", "group=hadoop_admins"], ports: &[] },
    Role { host: "c", name: "hadoop-test-c", tags: &["app=hadoop", "user=test"], ports: &[8020] },
    Role { host: PLAIN, name: "plain", tags: &[], ports: &[80, 8088] },
];

/// The hosts with an enforcer.
const ENFORCED: [&str; 3] = ["a", "b", "c"];
/// The host without.
const PLAIN: &str = "plain";

/// Whether the hosts get an enforcer. Without, the stage itself can be tested.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Enforcers {
    /// As the product is meant.
    Running,
    /// Bare hosts: every attempt then succeeds.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the stage's own test plays without enforcers"))]
    None,
}

/// Everyone, started and serving.
pub struct Cast {
    hosts: Vec<Host>,
    workloads: HashMap<&'static str, Workload>,
    enforcers: Enforcers,
    /// Servers beside a workload's first process; they live as long as the cast.
    _servers: Vec<Proc>,
}

impl Cast {
    /// Makes the hosts, starts enforcers and workloads, and waits until everyone is ready.
    pub fn enter(lab: &Lab, enforcers: Enforcers) -> Result<Self> {
        step::say("hosts a, b and c, and a plain one, on a bridge");
        let hosts: Vec<Host> = ENFORCED.into_iter().chain([PLAIN]).map(|name| lab.host(name)).collect::<Result<_>>()?;
        let plain = hosts.last().context("no plain host")?;
        lab.write_policy("decree.yaml", &decree(plain.v4(), plain.v6()))?;
        let mut cast = Self { hosts, workloads: HashMap::new(), enforcers, _servers: Vec::new() };
        for host in cast.enforced() {
            step::say(format!("enforcer on host {}", host.name()));
            host.start_enforcer("")?;
        }
        step::say("workloads: busybox httpd to serve, busybox wget to fetch");
        for role in ROLES {
            cast.start(lab, role).with_context(|| format!("{} does not start", role.name))?;
        }
        Ok(cast)
    }

    /// A workload by name.
    pub fn workload(&self, name: &str) -> Result<&Workload> {
        self.workloads.get(name).with_context(|| format!("the script calls for {name}, who is not in the cast"))
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name() == name).with_context(|| format!("there is no host {name}"))
    }

    /// Hosts that run, or ran, an enforcer.
    pub fn enforced(&self) -> impl Iterator<Item = &Host> {
        let any = self.enforcers == Enforcers::Running;
        self.hosts.iter().filter(move |host| any && host.name() != PLAIN)
    }

    /// Whether this host has an enforcer, alive or not.
    pub fn is_enforced(&self, host: &Host) -> bool {
        self.enforced().any(|enforced| enforced.name() == host.name())
    }

    fn start(&mut self, lab: &Lab, role: &Role) -> Result<()> {
        let host = self.host(role.host)?.clone();
        let pages = lab.directory().join(format!("pages-{}", role.name));
        fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
        fs::write(pages.join("index.html"), page(role.name))?;
        let pages = pages.to_string_lossy().into_owned();
        let httpd = |port: &u16| ["busybox", "httpd", "-f", "-h", &pages, "-p", &port.to_string()].map(str::to_owned);
        let mut servers = role.ports.iter().map(httpd);
        let workload = if self.is_enforced(&host) {
            let resident = servers.next().map_or_else(|| vec!["sleep".into(), "infinity".into()], Vec::from);
            let resident: Vec<&str> = resident.iter().map(String::as_str).collect();
            host.workload_running(role.name, role.tags, &resident)?
        } else {
            host.plain_workload(role.name)?
        };
        for server in servers {
            self._servers.push(workload.spawn(&server)?);
        }
        for port in role.ports {
            workload.wait_for_listener(*port, Duration::from_secs(5))?;
        }
        self.workloads.insert(role.name, workload);
        Ok(())
    }
}

/// What the server of a workload answers: proof of who was reached.
pub fn page(name: &str) -> String {
    format!("This is {name}.\n")
}

/// The decree, rule by rule; what it does not name is forbidden.
fn decree(archive_v4: Ipv4Addr, archive_v6: Ipv6Addr) -> String {
    format!(
        "name: decree
rules:
  # Hadoop may talk to hadoop if the user is prod.
  - hadoop-to-hadoop: allow app=hadoop user=prod -> app=hadoop user=prod tcp/8020,9000-9010
  # Myapp may talk to myapp if the user is prod.
  - myapp-to-myapp: allow app=myapp user=prod -> app=myapp user=prod tcp/8080
  # Myapp may talk to hadoop if the user is prod.
  - myapp-to-hadoop: allow app=myapp user=prod -> app=hadoop user=prod tcp/8020,9000-9010
  # Any user of group myapp_users may talk to myapp.
  - users-to-myapp: allow group=myapp_users -> app=myapp tcp/8080
  # Any user of group hadoop_admins may talk to hadoop if the user is prod.
  - admins-to-hadoop: allow group=hadoop_admins -> app=hadoop user=prod tcp/8020,9000-9010
  # One service on a host that has no enforcer.
  - myapp-to-archive: allow app=myapp user=prod -> net {archive_v4}/32, {archive_v6}/128 tcp/8088
"
    )
}

#[cfg(test)]
mod tests_of_the_decree {
    use policy::{Action, Identity, Moment, Namespace, RuleId};

    use super::*;
    use crate::demo::script::{self, Expected};

    const ARCHIVE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 4);

    fn identity(name: &str) -> Identity {
        let role = ROLES.iter().find(|role| role.name == name).expect("in the cast");
        if role.host == PLAIN {
            return Identity::external(ARCHIVE.into());
        }
        let namespace: Namespace = "/demo".parse().expect("namespace");
        Identity::pu(namespace, role.tags.iter().map(|tag| tag.split_once('=').expect("a tag")))
    }

    /// The script expects of every row what the policy's oracle says of its two identities.
    #[test]
    fn the_script_agrees_with_the_policy() {
        let text = decree(ARCHIVE, "fd77::4".parse().expect("address"));
        let rules = policy::parse_file("decree.yaml", &text).expect("the decree parses");
        for attempt in script::scenes().iter().flat_map(|scene| &scene.attempts) {
            let numbered = rules.iter().zip(0..).map(|(rule, number)| (RuleId(number), rule.as_ref()));
            let decision = policy::evaluate(
                numbered,
                &identity(attempt.from),
                &identity(attempt.to),
                6,
                attempt.port,
                Moment::START,
            );
            let rule = decision.rule.map(|id| rules[id.0 as usize].full_name());
            let row = format!("{} -> {}:{}", attempt.from, attempt.to, attempt.port);
            match attempt.expected {
                Expected::Allowed { rule: due, .. } => {
                    assert_eq!((decision.action, rule.as_deref()), (Action::Allow, Some(due)), "{row}");
                }
                // A pair that never met is refused although a rule would allow it: nobody is there to judge.
                Expected::Denied => assert_eq!(decision.action, Action::Allow, "{row}"),
                Expected::Refused | Expected::TimedOut => assert_eq!(decision.action, Action::Deny, "{row}"),
            }
        }
    }
}
