package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
)

type upOptions struct {
	controlPlane bool
	kubeconfig   string
	node         nodeSize
}

// controlRoles are the processes of the control plane.
func controlRoles(alone bool) []string {
	roles := []string{
		controlMachine, forwarderRole,
		"control/etcd", "control/apiserver", "control/controller-manager", "control/scheduler",
	}
	if !alone {
		roles = append(roles, "control/dns")
	}
	return roles
}

// steps tells what is done, as it is.
type steps struct {
	begun time.Time
	lock  sync.Mutex
}

func (s *steps) done(what string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	say("%6.1f s  %s", time.Since(s.begun).Seconds(), what)
}

// up starts the cluster, unless it runs already.
func (c *cluster) up(ctx context.Context, options upOptions) error {
	if err := c.outside(); err != nil {
		return err
	}
	// Before anything is touched: mistakes in what was asked for.
	if _, err := c.kubeletConfig(0, options.node); err != nil {
		return err
	}
	if err := c.namesake(); err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	runs, err := c.runsAlready(ctx, options)
	if runs || err != nil {
		return err
	}
	if err := c.sweep(); err != nil {
		return err
	}
	progress := &steps{begun: time.Now()}
	s, err := c.start(ctx, options, progress)
	if err != nil {
		// The logs stay, nothing else.
		if swept := killAll(c.owns, c.cgroups()); swept != nil {
			say("%s", swept)
		}
		return fmt.Errorf("cluster %s does not start: %w\nnothing of it runs any more; its logs are in %s until bin/cluster down", c.name, err, c.path("logs"))
	}
	c.tellNext(s, progress)
	return nil
}

// runsAlready tells so if the control plane is whole, after giving it back a node 0 that it has lost; it complains if
// the cluster runs as something else.
func (c *cluster) runsAlready(ctx context.Context, options upOptions) (bool, error) {
	running := c.running()
	s, err := c.load()
	// The user's kubeconfig is written last.
	if err != nil || len(running) == 0 || s.User.Path == "" {
		return false, nil
	}
	if absent := missing(running, controlRoles(s.ControlPlane)); len(absent) > 0 {
		say("cluster %s has lost %s: it is started anew", c.name, strings.Join(absent, ", "))
		return false, nil
	}
	if s.ControlPlane != options.controlPlane {
		return false, fmt.Errorf("cluster %s runs already, but not like this (%s): bin/cluster down first, or choose another --name", c.name, s.mode())
	}
	client, err := c.client(running[controlMachine], s.Token)
	if err != nil {
		return false, err
	}
	attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(attempt).Error(); err != nil {
		say("the API server of cluster %s does not answer (%v): it is started anew", c.name, err)
		return false, nil
	}
	say("cluster %s runs already (%s); bin/cluster status says more", c.name, s.mode())
	if s.ControlPlane || len(missing(running, nodeRoles(0))) == 0 {
		return true, nil
	}
	say("%s is missing: it is started", nodeName(0))
	return true, c.startNode(ctx, running[controlMachine], client, 0, options.node, s)
}

func (s state) mode() string {
	if s.ControlPlane {
		return "control plane only"
	}
	return "with nodes"
}

// start does all that can be done at once at once.
func (c *cluster) start(ctx context.Context, options upOptions, progress *steps) (state, error) {
	s := state{ControlPlane: options.controlPlane}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return s, err
	}
	tokens, err := c.writeFiles()
	if err != nil {
		return s, err
	}
	s.Token, s.NodeTokens = tokens["admin"], tokens
	control, err := c.startMachine(controlMachine, "")
	if err != nil {
		return s, err
	}
	if err := prepareHost(); err != nil {
		return s, err
	}
	if err := controlNetwork(control); err != nil {
		return s, err
	}
	if s.Port, err = c.startForwarder(control); err != nil {
		return s, err
	}
	if err := c.save(s); err != nil {
		return s, err
	}
	client, err := c.client(control, s.Token)
	if err != nil {
		return s, err
	}
	progress.done("network")
	if err := c.startParts(ctx, options, control, client, s, progress); err != nil {
		return s, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", s.Port)
	outside, err := c.context(address, "admin", s.Token)
	if err != nil {
		return s, err
	}
	if err := writeOwned(c.path("kubeconfig"), outside); err != nil {
		return s, err
	}
	if s.User, err = c.enter(outside, options.kubeconfig); err != nil {
		return s, err
	}
	return s, c.save(s)
}

// startParts starts the programs, each as soon as what it needs is there.
func (c *cluster) startParts(ctx context.Context, options upOptions, control int, client *kubernetes.Clientset, s state, progress *steps) error {
	parts, ctx := errgroup.WithContext(ctx)
	part := func(what string, start func() error) {
		parts.Go(func() error {
			if err := start(); err != nil {
				return err
			}
			progress.done(what)
			return nil
		})
	}
	if err := c.startAPI(ctx, control, client); err != nil {
		return err
	}
	progress.done("etcd and API server")
	part("controller-manager and scheduler", func() error { return c.startControllers(ctx, control, client) })
	if !options.controlPlane {
		part("DNS", func() error { return c.startDNS(ctx, control) })
		part(nodeName(0), func() error { return c.startNode(ctx, control, client, 0, options.node, s) })
	}
	return parts.Wait()
}

// writeFiles writes what the control plane reads; returns the tokens by user.
func (c *cluster) writeFiles() (map[string]string, error) {
	tokens, err := writeSecrets(c.path("pki"))
	if err != nil {
		return nil, err
	}
	for file, user := range map[string]string{
		"inside":             "admin",
		"controller-manager": "system:kube-controller-manager",
		"scheduler":          "system:kube-scheduler",
		"proxy":              "system:kube-proxy",
	} {
		if err := c.writeKubeconfig(c.path(file+".kubeconfig"), user, tokens[user]); err != nil {
			return nil, err
		}
	}
	return tokens, c.writePause()
}

func (c *cluster) tellNext(s state, progress *steps) {
	say("cluster %s runs (%s) after %.1f s", c.name, s.mode(), time.Since(progress.begun).Seconds())
	if s.User.Own {
		say("  kubeconfig   %s", s.User.Path)
	} else {
		say("  kubeconfig   %s: its current context is %s until bin/cluster down", s.User.Path, c.contextName())
	}
	if s.ControlPlane {
		say("next           bin/cluster kubectl get --raw=/readyz · bin/cluster down")
		return
	}
	say("next           bin/cluster broker, then bin/install --broker-url-file FILE (it says which) · bin/cluster node start 1 · bin/cluster down")
}

// === Down

// down removes everything.
func (c *cluster) down() error {
	if err := c.outside(); err != nil {
		return err
	}
	begun := time.Now()
	if err := c.namesake(); err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	_, err = os.Stat(c.dir)
	nothing := errors.Is(err, fs.ErrNotExist) && len(c.running()) == 0 && len(cgroupsOf(c.cgroups())) == 0
	if err := c.sweep(); err != nil {
		return err
	}
	if err := restoreHost(); err != nil {
		return err
	}
	if err := os.Remove(c.dir + ".lock"); err != nil {
		return err
	}
	_ = os.Remove(c.path("..")) // if it was the last one
	if nothing {
		say("cluster %s does not run: nothing to do", c.name)
	} else {
		say("cluster %s is gone after %.1f s, with all that belonged to it", c.name, time.Since(begun).Seconds())
	}
	return nil
}

// sweep removes what there is of the cluster, whatever state a killed run has left it in.
func (c *cluster) sweep() error {
	s, err := c.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		say("%v: going on without it", err)
	}
	if s.User.Path != "" {
		if err := c.leave(s.User); err != nil {
			say("%v", err)
		}
	}
	if err := killAll(c.owns, c.cgroups()); err != nil {
		return err
	}
	if err := removeCgroups(c.cgroups()); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}
