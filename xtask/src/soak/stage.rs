//! Three hosts with four workloads each, everybody calling everybody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Calls, Dice, Host, Lab, Outcome, Proc, Server, Workload};

use super::Trouble;
use super::leaks::{self, Leaks, Size};
use super::world::{self, World};

const HOSTS: [&str; 3] = ["a", "b", "c"];
const WORKLOADS: u16 = 4;
/// Keys and profiles are renewed all the time; nothing may be noticed of it.
const OVERRIDES: &str = "identity.profile_lifetime = \"2m\"\nidentity.prekey_rotation = \"30s\"";
/// How long a stretch lasts, seconds.
const STRETCH: f64 = 5.0;
/// Milliseconds a caller waits: long enough for TCP's second attempt after a loss, and its third.
const PATIENCE: &str = "4000";
/// Both ends act on changed tags within two seconds.
const SETTLED: Duration = Duration::from_millis(2500);

/// Connections of one PU to another that ended alike.
pub struct Call {
    pub from: String,
    pub to: String,
    pub outcome: Outcome,
    pub count: u64,
    pub slowest_micros: u64,
}

struct Member {
    name: String,
    host: usize,
    port: u16,
    workload: Workload,
    _server: Server,
}

/// Hosts, PUs, and the world they are in.
pub struct Stage {
    lab: Lab,
    hosts: Vec<Host>,
    sizes: Vec<Size>,
    members: Vec<Member>,
    world: World,
    policies: usize,
    names: usize,
}

impl Stage {
    /// Starts everything.
    pub fn set(dice: &mut Dice) -> Result<Self> {
        let lab = Lab::new("soak")?;
        let text = world::policy(dice, "soak0");
        lab.write_policy("soak.yaml", &text)?;
        let hosts: Vec<Host> = HOSTS.iter().map(|name| lab.host(name)).collect::<Result<_>>()?;
        for host in &hosts {
            host.start_enforcer(OVERRIDES)?;
        }
        let mut stage = Self {
            lab,
            hosts,
            sizes: Vec::new(),
            members: Vec::new(),
            world: World::new(&text)?,
            policies: 0,
            names: 0,
        };
        for host in 0..HOSTS.len() {
            for number in 0..WORKLOADS {
                let member = stage.member(host, 8001 + number, dice)?;
                stage.members.push(member);
            }
        }
        // The first stretch fills what is there to be filled.
        stage.calls(1.0)?;
        stage.sizes = stage.hosts.iter().map(leaks::size).collect::<Result<_>>()?;
        Ok(stage)
    }

    /// Plays one stretch; every world that was in force during it, and how every connection ended.
    pub fn play(&mut self, trouble: Trouble, dice: &mut Dice) -> Result<(Vec<World>, Vec<Call>)> {
        let mut worlds = vec![self.world.clone()];
        let mut calls = Vec::new();
        match trouble {
            Trouble::Calm => calls = self.calls(STRETCH)?,
            Trouble::Policy => {
                let callers = self.callers(STRETCH)?;
                self.decree(dice)?;
                calls = self.collect(callers)?;
                worlds.push(self.world.clone());
            }
            Trouble::Tags => {
                let callers = self.callers(STRETCH)?;
                self.retag(dice)?;
                calls = self.collect(callers)?;
                worlds.push(self.world.clone());
                std::thread::sleep(SETTLED);
            }
            Trouble::Churn => {
                let place = dice.below(self.members.len());
                let (host, port) = (self.members[place].host, self.members[place].port);
                let gone = self.members.remove(place);
                drop(gone);
                let member = self.member(host, port, dice)?;
                self.members.insert(place, member);
                worlds = vec![self.world.clone()];
                calls.extend(self.calls(STRETCH)?);
            }
            Trouble::Kill => {
                let host = dice.below(HOSTS.len());
                self.hosts[host].kill9_enforcer()?;
                let callers = self.callers(STRETCH)?;
                std::thread::sleep(Duration::from_secs_f64(STRETCH / 2.0));
                self.hosts[host].restart_enforcer()?;
                calls = self.collect(callers)?;
                self.sizes[host] = leaks::size(&self.hosts[host])?;
            }
            Trouble::Loss => {
                let host = dice.below(HOSTS.len());
                self.hosts[host].set_loss(2.0)?;
                let played = self.calls(STRETCH);
                self.hosts[host].set_loss(0.0)?;
                calls = played?;
            }
        }
        Ok((worlds, calls))
    }

    /// Ends all workloads, and sees what is left.
    pub fn leaks(mut self) -> Result<Leaks> {
        self.members.clear();
        let mut leaks = Leaks::default();
        for (host, before) in self.hosts.iter().zip(&self.sizes) {
            leaks.add(host, *before)?;
        }
        Ok(leaks)
    }

    fn member(&mut self, host: usize, port: u16, dice: &mut Dice) -> Result<Member> {
        self.names += 1;
        let name = format!("w{}", self.names);
        let tags = world::tags(dice);
        let flat: Vec<String> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let workload = self.hosts[host].workload(&name, &flat.iter().map(String::as_str).collect::<Vec<_>>())?;
        let server = workload.serve(&["--listen", &format!("[::]:{port}"), "--quiet"])?;
        self.world.enter(&name, tags, port);
        Ok(Member { name, host, port, workload, _server: server })
    }

    fn decree(&mut self, dice: &mut Dice) -> Result<()> {
        self.policies += 1;
        let name = format!("soak{}", self.policies);
        let text = world::policy(dice, &name);
        self.lab.write_policy("soak.yaml", &text)?;
        self.world.decree(&text)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        for host in &self.hosts {
            while !host.enforcer(&["policy", "show"])?.stdout.contains(&format!("{name}/")) {
                ensure!(Instant::now() < deadline, "{} does not read its policy: {}", host.name(), host.enforcer_log());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn retag(&mut self, dice: &mut Dice) -> Result<()> {
        let member = dice.choose(&self.members);
        let tags = world::tags(dice);
        let mut line = vec!["pu".to_owned(), "tag".into(), member.name.clone()];
        line.extend(tags.iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]));
        let had = self.world.tags(&member.name).into_iter().flat_map(|tags| tags.keys());
        line.extend(
            had.filter(|key| !tags.contains_key(*key)).flat_map(|key| ["--unset".to_owned(), (*key).to_owned()]),
        );
        self.hosts[member.host].enforcer(&line.iter().map(String::as_str).collect::<Vec<_>>())?.ok()?;
        self.world.enter(&member.name, tags, member.port);
        Ok(())
    }

    /// Everybody calls everybody, over both families.
    fn calls(&self, seconds: f64) -> Result<Vec<Call>> {
        let callers = self.callers(seconds)?;
        self.collect(callers)
    }

    fn callers(&self, seconds: f64) -> Result<Vec<(String, Proc)>> {
        let seconds = seconds.to_string();
        let targets: Vec<String> = self.addresses().into_keys().collect();
        let call = |member: &Member| {
            let mut line = vec!["calls", "--seconds", &seconds, "--timeout", PATIENCE];
            line.extend(targets.iter().map(String::as_str));
            Ok((member.name.clone(), member.workload.spawn_tool(&line)?))
        };
        self.members.iter().map(call).collect()
    }

    fn collect(&self, callers: Vec<(String, Proc)>) -> Result<Vec<Call>> {
        let addresses = self.addresses();
        let mut calls = Vec::new();
        for (from, mut caller) in callers {
            let ended =
                caller.wait(Duration::from_secs(600))?.with_context(|| format!("the caller in {from} hangs"))?;
            ensure!(ended.success(), "the caller in {from} failed: {}", caller.stderr());
            let counted: Vec<Calls> = serde_json::from_str(&caller.stdout()).context("the caller's counts")?;
            for part in counted {
                let to = addresses.get(&part.to).with_context(|| format!("{} is nobody's address", part.to))?.clone();
                let (outcome, count, slowest_micros) = (part.outcome, part.count, part.slowest_micros);
                calls.push(Call { from: from.clone(), to, outcome, count, slowest_micros });
            }
        }
        Ok(calls)
    }

    /// Where each PU can be called.
    fn addresses(&self) -> BTreeMap<String, String> {
        let of = |member: &Member| {
            let host = &self.hosts[member.host];
            [host.socket_v4(member.port), host.socket_v6(member.port)].map(|to| (to, member.name.clone()))
        };
        self.members.iter().flat_map(of).collect()
    }
}
