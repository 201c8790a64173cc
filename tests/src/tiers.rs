//! A shop in three tiers, of real programs in containers: nginx before a service of shell scripts before Redis.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::containerd::present;
use crate::docker::{Container, Docker};
use crate::enforcer::text;

/// The running shop. Each container is labelled with its `app` (and `shop=yes`).
#[derive(Clone, Debug)]
pub struct Tiers {
    /// nginx on port 80, `app=web`: hands every request on.
    pub web: Container,
    /// busybox httpd on port 8080, `app=api`: counts visits.
    pub api: Container,
    /// Redis on port 6379, `app=db`: keeps the count.
    pub db: Container,
    /// Their addresses in their network, in this order.
    pub addresses: [String; 3],
}

/// What the service answers: the number of visits so far.
const VISITS: &str = "#!/bin/sh
answer=$(printf 'INCR visits\\r\\nQUIT\\r\\n' | nc -w 3 \"$DATABASE\" 6379 | head -n 1)
case $answer in
  :*) printf 'Content-Type: text/plain\\r\\n\\r\\nvisits %s\\n' \"${answer#:}\" ;;
  *) printf 'Status: 503 no database\\r\\nContent-Type: text/plain\\r\\n\\r\\nno database\\n' ;;
esac
";

impl Docker {
    /// Starts the shop in a network that exists; it serves when this returns, if nobody keeps its tiers from each other.
    pub fn three_tiers(&self, network: &str) -> Result<Tiers> {
        present("redis-server", "redis-server")?;
        present("nginx", "nginx-light")?;
        let files = self.directory().join("tiers");
        fs::create_dir_all(&files)?;
        let (script, config) = (files.join("visits"), files.join("nginx.conf"));
        fs::write(&script, VISITS)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        self.image("db:1", &["/usr/bin/redis-server"], &[])?;
        self.image("api:1", &["/bin/busybox"], &[(&text(script), "/www/cgi-bin/visits")])?;
        let (users, groups) = (files.join("passwd"), files.join("group"));
        fs::write(&users, "root:x:0:0::/:/bin/sh\n")?;
        fs::write(&groups, "root:x:0:\n")?;
        let accounts = [(text(users), "/etc/passwd"), (text(groups), "/etc/group")];
        let accounts = accounts.each_ref().map(|(from, to)| (from.as_str(), *to));
        self.image("web:1", &["/usr/sbin/nginx"], &accounts)?;

        let start = |tier: &str, more: &[&str]| -> Result<(Container, String)> {
            let label = format!("app={tier}");
            let options = ["--network", network, "--label", "shop=yes", "--label", &label];
            let container = self.run(tier, &[&options[..], more].concat())?;
            let address = container.address(self, network).with_context(|| self.log_of(&container))?;
            Ok((container, address))
        };
        let redis = ["/bin/redis-server", "--save", "", "--protected-mode", "no", "--dir", "/tmp"];
        let (db, first) = start("db", &[&["db:1"], &redis[..]].concat())?;
        let place = format!("DATABASE={first}");
        let httpd = ["/bin/httpd", "-f", "-p", "8080", "-h", "/www"];
        let (api, second) = start("api", &[&["--env", &place, "api:1"], &httpd[..]].concat())?;
        let text_of_config = format!(
            "user root root;\ndaemon off;\nmaster_process off;\npid /tmp/nginx.pid;\nerror_log /dev/stderr;\nevents {{}}\n\
             http {{ access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;\n\
             uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
             server {{ listen 80; location / {{ proxy_pass http://{second}:8080/cgi-bin/visits; proxy_connect_timeout 3s; proxy_ignore_client_abort on; }} }} }}\n"
        );
        fs::write(&config, text_of_config)?;
        let mount = format!("{}:/etc/nginx.conf:ro", config.display());
        let nginx = ["--volume", &mount, "web:1", "/bin/nginx", "-c", "/etc/nginx.conf"];
        let (web, third) = start("web", &nginx)?;
        let tiers = Tiers { web, api, db, addresses: [third, second, first] };
        for (container, port) in [(&tiers.db, 6379), (&tiers.api, 8080), (&tiers.web, 80)] {
            self.wait_for_listener(container, port)?;
        }
        Ok(tiers)
    }

    /// Waits until a container listens on a port. It is looked into from outside: the wait makes no connection.
    pub fn wait_for_listener(&self, container: &Container, port: u16) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        let wanted = format!(":{port:04X} ");
        loop {
            let pid = container.pid(self).with_context(|| self.log_of(container))?;
            let read = |table: &str| fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            let tables = read("tcp") + &read("tcp6");
            if tables.lines().any(|line| line.contains(&wanted) && line.contains(" 0A ")) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} does not listen on {port}: {}",
                container.name,
                self.log_of(container)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_of(&self, container: &Container) -> String {
        self.docker(&["logs", &container.id]).map(|said| said.stdout + &said.stderr).unwrap_or_default()
    }
}

impl Tiers {
    /// Fetches the front page from within a container that has busybox; the number of visits, or what was said instead.
    pub fn visit(&self, from: &Container) -> Result<std::result::Result<u64, String>> {
        // Static programs of glibc can look no name up without its libraries, and busybox's wget looks up "http".
        let line = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {} 80", self.addresses[0]);
        let said = from.exec(&["sh", "-c", &line])?;
        let visits = said.stdout.lines().find_map(|line| line.strip_prefix("visits ")?.trim().parse().ok());
        Ok(visits.ok_or_else(|| format!("{}: {}{}", said.code(), said.stdout, said.stderr)))
    }
}
