package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A machine is a process that holds the namespaces in which others run: network, and for nodes also mounts. When its
// last process is gone, the kernel removes them, and with them links, routes, firewall rules and mounts.

// startMachine starts one and returns its pid. For a node, directory is what it sees as /var/lib and /var/log.
func (c *cluster) startMachine(role, directory string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	command := exec.Command(self, "machine")
	command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	if directory != "" {
		command.Args = append(command.Args, directory, c.cache)
		command.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNS
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	command.Stdout = writer
	_, err = c.spawn(role, command)
	writer.Close()
	if err != nil {
		return 0, err
	}
	if _, err := bufio.NewReader(reader).ReadString('\n'); err != nil {
		return 0, fmt.Errorf("cannot make a machine: %s", c.tail(role))
	}
	return command.Process.Pid, nil
}

// machine is what the process does: prepares, says so, and waits to be killed.
func machine(args []string) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	if len(args) == 2 {
		if err := ownMounts(args[0], args[1]); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	os.Stdout.Close()
	for {
		_ = unix.Pause()
	}
}

// ownMounts gives the machine /run, /var/lib and /var/log of its own, so that containerd, kubelet and their like
// can use their usual places there. The cache stays visible.
func ownMounts(directory, cache string) error {
	seen, err := os.Open(cache)
	if err != nil {
		return err
	}
	defer seen.Close()
	for _, place := range []string{"/var/lib", "/var/log"} {
		source := filepath.Join(directory, filepath.Base(place))
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, place, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", place, err)
		}
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("cannot mount /run: %w", err)
	}
	before, err := seen.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(cache); err != nil || !os.SameFile(before, now) {
		if err := os.MkdirAll(cache, 0o755); err != nil {
			return err
		}
		hidden := fmt.Sprintf("/proc/self/fd/%d", seen.Fd())
		if err := unix.Mount(hidden, cache, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", cache, err)
		}
	}
	// Containers' mounts reach each other inside this machine; private outwards.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}
