package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Every process of a cluster carries "directory:role" in this variable of its environment, and so do the processes
// that it starts. The kernel is the only record: nothing to lose, and no reused pid is ever taken for ours.
const mark = "MAYFLY_CLUSTER_PROCESS"

// killLimit is how long killed processes may take to be gone.
const killLimit = 20 * time.Second

// process is one that carries our mark.
type process struct {
	pid  int
	dir  string // of its cluster
	role string
}

// processes finds all that carry the mark and satisfy wanted.
func processes(wanted func(process) bool) []process {
	entries, _ := os.ReadDir("/proc")
	var found []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, ok := marked(pid); ok && wanted(p) {
			found = append(found, p)
		}
	}
	return found
}

// marked reads the mark of a process. One that has ended has none.
func marked(pid int) (process, bool) {
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return process{}, false
	}
	for variable := range bytes.SplitSeq(environment, []byte{0}) {
		if value, ok := bytes.CutPrefix(variable, []byte(mark+"=")); ok {
			dir, role, ok := strings.Cut(string(value), ":")
			return process{pid: pid, dir: dir, role: role}, ok
		}
	}
	return process{}, false
}

// kill sends SIGKILL if the process is still the one that check knows.
func kill(pid int, check func() bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if check() {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// killAll kills what wanted describes and what is in the cgroups that match, until nothing of it is left.
func killAll(wanted func(process) bool, cgroups string) error {
	wanted = except(os.Getpid(), wanted)
	for deadline := time.Now().Add(killLimit); ; {
		left := 0
		for _, p := range processes(wanted) {
			left++
			kill(p.pid, func() bool { now, ok := marked(p.pid); return ok && now == p })
		}
		for _, group := range cgroupsOf(cgroups) {
			for _, pid := range membersOf(group) {
				left++
				kill(pid, func() bool { return slices.Contains(membersOf(group), pid) })
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes do not end, %s after they were killed: see ps -ef", left, killLimit)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func except(pid int, wanted func(process) bool) func(process) bool {
	return func(p process) bool { return p.pid != pid && wanted(p) }
}

// === Starting

// spawn starts a process of the cluster in a session of its own, so that it outlives us. What it says goes to
// logs/ROLE.log. The channel tells when it ends while we are still here.
func (c *cluster) spawn(role string, command *exec.Cmd) (<-chan error, error) {
	path := c.log(role)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/nonexistent",
		mark + "=" + c.dir + ":" + role,
	}
	if command.Stdout == nil {
		command.Stdout = log
	}
	command.Stderr = log
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setsid = true
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", role, err)
	}
	ended := make(chan error, 1)
	go func() {
		err := command.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		ended <- err
	}()
	return ended, nil
}

// await polls until ready says nil; fails when the process that it waits for ends, or after limit.
func await(ctx context.Context, what string, limit time.Duration, ended <-chan error, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready within %s", limit))
	defer cancel()
	var last error
	for {
		attempt, done := context.WithTimeout(ctx, 2*time.Second)
		err := ready(attempt)
		done()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%s has ended: %w", what, err)
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %v)", what, context.Cause(ctx), last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tail is the end of a log, for error messages.
func (c *cluster) tail(role string) string {
	text, _ := os.ReadFile(c.log(role))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "\n  " + strings.Join(lines[max(0, len(lines)-5):], "\n  ")
}

func (c *cluster) log(role string) string {
	return filepath.Join(c.dir, "logs", strings.ReplaceAll(role, "/", "-")+".log")
}
