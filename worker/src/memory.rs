//! How much memory is in use.

use std::{fs, path::Path};

/// Where the kernel tells about control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// A limit above this is none: version 1 writes the largest number of pages instead of a word.
const NO_LIMIT: u64 = 1 << 60;

/// In bytes: that of the container where its memory is limited (without file pages that can be dropped at any
/// time, as Kubernetes counts a working set), else that of this process and its descendants. `None` where the
/// kernel tells neither.
pub(crate) fn in_use() -> Option<u64> {
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    of_container(&memberships, CGROUPS.as_ref()).or_else(|| of_processes(std::process::id()))
}

/// Control group version 2 or 1, whichever limits us (kernel documentation: cgroup-v2, cgroup-v1/memory).
fn of_container(memberships: &str, cgroups: &Path) -> Option<u64> {
    let own = |controller: &str| {
        memberships.lines().find_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (controllers, path) = line.split_once(':')?;
            controllers.split(',').any(|it| it == controller).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let versions = [
        (own(""), "", "memory.max", "memory.current", "inactive_file"),
        (own("memory"), "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ];
    for (own, root, limit, usage, inactive) in versions {
        // In a container its own group may be mounted at the root, whatever its path outside.
        for path in own.into_iter().flat_map(|own| [own, String::new()]) {
            let group = cgroups.join(root).join(path);
            let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
            if number(limit).is_some_and(|limit| limit < NO_LIMIT) {
                let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
                let file_pages =
                    stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok());
                return Some(number(usage)?.saturating_sub(file_pages.unwrap_or(0)));
            }
        }
    }
    None
}

/// The resident sets of `pid` and all its descendants (proc(5): `VmRSS`, `children`).
fn of_processes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: u64 =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let children =
        threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok()).flat_map(
            |children| children.split_whitespace().filter_map(|it| it.parse().ok()).collect::<Vec<u32>>(),
        );
    // A child that ended meanwhile uses nothing.
    Some(kibibytes * 1024 + children.filter_map(of_processes).sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control group with this limit, of which 1,000 bytes are in use, 300 of them pages that can be dropped.
    fn group(path: &Path, names: [&str; 3], limit: &str) {
        let [limit_file, usage, inactive] = names;
        fs::create_dir_all(path).unwrap();
        let stat = format!("anon 700\nx{inactive} 5\n{inactive} 300\n");
        for (name, text) in [(limit_file, limit), (usage, "1000\n"), ("memory.stat", stat.as_str())] {
            fs::write(path.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_containers_memory_counts_where_it_is_limited_without_pages_that_can_be_dropped() {
        let v2 = ["memory.max", "memory.current", "inactive_file"];
        let v1 = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
        for (memberships, path, names, limit, expected) in [
            ("0::/pod/own\n", "pod/own", v2, "2000\n", Some(700)),
            // As a container sees its own group.
            ("0::/../elsewhere\n", "", v2, "2000\n", Some(700)),
            ("0::/pod/own\n", "pod/own", v2, "max\n", None),
            ("2:cpu,memory:/pod\n1:name=systemd:/x\n", "memory/pod", v1, "2000\n", Some(700)),
            ("2:cpu,memory:/outside\n", "memory", v1, "2000\n", Some(700)),
            ("2:memory:/pod\n", "memory/pod", v1, "9223372036854771712\n", None),
            ("2:cpu:/pod\n", "memory/pod", v1, "2000\n", None),
            ("", "pod", v2, "2000\n", None),
        ] {
            let cgroups = tempfile::tempdir().unwrap();
            group(&cgroups.path().join(path), names, limit);
            assert_eq!(of_container(memberships, cgroups.path()), expected, "{memberships} {path} {limit}");
        }
    }

    #[test]
    fn memory_that_is_used_counts_and_so_does_a_childs() {
        let own = of_processes(std::process::id()).unwrap();
        assert!(own > 1_000_000, "{own}");
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let status = fs::read_to_string(format!("/proc/{}/stat", child.id())).is_ok();
        let with_child = of_processes(child.id()).unwrap();
        let both = of_processes(std::process::id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(status && with_child > 0 && both > with_child, "{own} {with_child} {both}");
    }
}
