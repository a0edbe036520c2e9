package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The pods of a node are below a cgroup of its own, in every hierarchy.

type hierarchy struct {
	path    string
	unified bool
}

// hierarchies are the places where cgroups are mounted.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); fields[2] == "cgroup" || fields[2] == "cgroup2" {
			found = append(found, hierarchy{path: fields[1], unified: fields[2] == "cgroup2"})
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroups are mounted here: Kubernetes needs them")
	}
	return found, nil
}

// makeCgroup makes the cgroup in every hierarchy, ready for children with limits.
func makeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if h.unified {
			err = delegate(h.path)
		}
		if err == nil {
			err = os.MkdirAll(filepath.Join(h.path, name), 0o755)
		}
		// A new cpuset is empty, and an empty one takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err == nil && !h.unified {
				err = inherit(h.path, name, file)
			}
		}
		if err != nil {
			return fmt.Errorf("cannot make cgroup %s in %s: %w", name, h.path, err)
		}
	}
	return nil
}

// delegate lets the children of a cgroup of the unified hierarchy have all controllers that it has.
func delegate(path string) error {
	controllers, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var wanted []string
	for _, controller := range strings.Fields(string(controllers)) {
		wanted = append(wanted, "+"+controller)
	}
	if len(wanted) == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte(strings.Join(wanted, " ")), 0o644)
}

func inherit(parent, child, file string) error {
	value, err := os.ReadFile(filepath.Join(parent, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(parent, child, file), value, 0o644)
}

// cgroupsOf lists the directories of all cgroups below those that match, deepest first.
func cgroupsOf(pattern string) []string {
	all, _ := hierarchies()
	var found []string
	for _, h := range all {
		tops, _ := filepath.Glob(filepath.Join(h.path, pattern))
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					found = append(found, path)
				}
				return nil
			})
		}
	}
	slices.Reverse(found)
	return found
}

// membersOf are the processes in a cgroup.
func membersOf(directory string) []int {
	text, _ := os.ReadFile(filepath.Join(directory, "cgroup.procs"))
	var members []int
	for word := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
			members = append(members, pid)
		}
	}
	return members
}

// removeCgroups removes the cgroups that match, once their processes are gone.
func removeCgroups(pattern string) error {
	var err error
	for deadline := time.Now().Add(killLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		left := cgroupsOf(pattern)
		if len(left) == 0 {
			return nil
		}
		for _, directory := range left {
			if removed := os.Remove(directory); removed != nil {
				err = removed
			}
		}
	}
	return fmt.Errorf("cannot remove a cgroup: %w", err)
}
