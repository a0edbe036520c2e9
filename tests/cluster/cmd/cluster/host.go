package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What all clusters of this machine share. It is in /run, since a reboot undoes it all.
const sharedDir = "/run/mayfly-clusters"

// lockLimit is how long another command may take to give a lock back.
const lockLimit = 5 * time.Minute

// kernelSettings are what kubelet sets for the whole machine.
var kernelSettings = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// formerHost is how the machine was before the first cluster.
type formerHost struct {
	Settings map[string]string `json:"settings"`
	// Route: the blackhole route is ours.
	Route bool `json:"route"`
}

// prepareHost remembers how the machine was, and lets no packet for our addresses out, should a command be forgotten
// outside the namespaces. Call it when a process of the cluster runs already: that is what counts as a user.
func prepareHost() error {
	unlock, err := lockHost()
	if err != nil {
		return err
	}
	defer unlock()
	record := filepath.Join(sharedDir, "former.json")
	if _, err := os.Stat(record); err == nil {
		return nil
	}
	former := formerHost{Settings: map[string]string{}}
	for _, name := range kernelSettings {
		if value, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			former.Settings[name] = strings.TrimSpace(string(value))
		}
	}
	present, err := exec.Command("ip", "route", "show", "exact", everything).Output()
	if err != nil {
		return fmt.Errorf("cannot read the machine's routes: %w", err)
	}
	former.Route = len(strings.TrimSpace(string(present))) == 0
	// First the record, then the deed.
	if err := writeJSON(record, former); err != nil {
		return err
	}
	if !former.Route {
		return nil
	}
	if output, err := exec.Command("ip", "route", "add", "blackhole", everything).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot add a blackhole route for %s: %s: %w", everything, output, err)
	}
	return nil
}

// restoreHost undoes prepareHost and what kubelet did, after the last cluster.
func restoreHost() error {
	if _, err := os.Stat(sharedDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockHost()
	if err != nil {
		return err
	}
	defer unlock()
	if len(processes(except(os.Getpid(), func(process) bool { return true }))) > 0 {
		return nil
	}
	var former formerHost
	record := filepath.Join(sharedDir, "former.json")
	if err := readJSON(record, &former); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for name, value := range former.Settings {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			return fmt.Errorf("cannot restore %s to %s: %w", name, value, err)
		}
	}
	if former.Route {
		// It may be gone already: the end is the same.
		_ = exec.Command("ip", "route", "delete", "blackhole", everything).Run()
	}
	return os.RemoveAll(sharedDir)
}

func lockHost() (func(), error) { return lock(filepath.Join(sharedDir, "lock")) }

// lock waits for its turn. Whoever holds it may remove the file: then those who waited take the new one.
func lock(path string) (unlock func(), err error) {
	told := false
	for deadline := time.Now().Add(lockLimit); time.Now().Before(deadline); {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		held, heldErr := file.Stat()
		there, thereErr := os.Stat(path)
		if err == nil && heldErr == nil && thereErr == nil && os.SameFile(held, there) {
			return func() { file.Close() }, nil
		}
		file.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		if err != nil && !told {
			say("waiting for another command (%s is locked)", path)
			told = true
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s is still locked after %s: another command hangs; look for it with ps -ef", path, lockLimit)
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(path, append(text, '\n'), 0o600)
}

func replaceFile(path string, text []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path+".new", text, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readJSON(path string, value any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, value); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
