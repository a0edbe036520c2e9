package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	brokerImage = "mayfly.test/rabbitmq:4"
	// brokerRecipe is raised when the same root file system becomes another image.
	brokerRecipe = "2"
	// Where bin/cluster keeps the root file system.
	brokerRootVariable = "MAYFLY_BROKER_ROOT"
)

// What nobody in a pod asks for, a third of the whole.
var brokerWithout = []string{
	"./proc/*", "./sys/*", "./dev/*", "./tmp/*", "./run/*", "./mnt/*",
	"./usr/share/doc", "./usr/share/man", "./usr/share/info", "./usr/share/locale", "./var/cache", "./var/lib/apt", "./var/log/*",
}

// brokerObjects are what runs. The data go with the pod.
const brokerObjects = `
apiVersion: v1
kind: Namespace
metadata: { name: rabbitmq }
---
apiVersion: v1
kind: Secret
metadata: { name: rabbitmq, namespace: rabbitmq }
stringData:
  enabled_plugins: "[rabbitmq_management, rabbitmq_prometheus]."
  rabbitmq.conf: |
    default_user = mayfly
    default_pass = PASSWORD
    disk_free_limit.absolute = 50MB
    vm_memory_high_watermark.absolute = 1GB
    log.console = true
    log.file = false
---
apiVersion: v1
kind: Service
metadata: { name: rabbitmq, namespace: rabbitmq }
spec:
  selector: { app: rabbitmq }
  ports:
    - { name: amqp, port: 5672 }
    - { name: management, port: 15672 }
    - { name: prometheus, port: 15692 }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: rabbitmq, namespace: rabbitmq }
spec:
  strategy: { type: Recreate }
  selector: { matchLabels: { app: rabbitmq } }
  template:
    metadata: { labels: { app: rabbitmq } }
    spec:
      # Other nodes come and go.
      nodeSelector: { kubernetes.io/hostname: node-0 }
      enableServiceLinks: false
      automountServiceAccountToken: false
      containers:
        - name: rabbitmq
          image: IMAGE
          imagePullPolicy: Never
          command: [sh, -c, "exec /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"]
          env:
            - { name: HOME, value: /var/lib/rabbitmq }
            - { name: LANG, value: C.UTF-8 }
            - { name: ERL_EPMD_ADDRESS, value: 127.0.0.1 }
            - { name: RABBITMQ_NODENAME, value: rabbit@localhost }
            - { name: RABBITMQ_CONF_ENV_FILE, value: /dev/null }
            - { name: RABBITMQ_CONFIG_FILE, value: /etc/mayfly/rabbitmq.conf }
            - { name: RABBITMQ_ENABLED_PLUGINS_FILE, value: /etc/mayfly/enabled_plugins }
            - { name: RABBITMQ_MNESIA_BASE, value: /var/lib/rabbitmq/data }
            - { name: RABBITMQ_LOG_BASE, value: /var/lib/rabbitmq/log }
            # Waiting schedulers leave the cores to others.
            - { name: RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS, value: "+sbwt none +sbwtdcpu none +sbwtdio none" }
          readinessProbe: { tcpSocket: { port: 5672 }, periodSeconds: 1 }
          resources: { requests: { cpu: 100m, memory: 256Mi } }
          volumeMounts:
            - { name: data, mountPath: /var/lib/rabbitmq }
            - { name: settings, mountPath: /etc/mayfly }
      volumes:
        - { name: data, emptyDir: {} }
        - { name: settings, secret: { secretName: rabbitmq } }
`

func brokerCommand(on maker) *cobra.Command {
	return &cobra.Command{
		Use:   "broker",
		Short: "Run a RabbitMQ 4 on node 0; prints the path of a file with its URL as pods reach it",
		Long: "Run a RabbitMQ 4 on node 0, as service rabbitmq in namespace rabbitmq. Prints the path of a file with its URL as pods\n" +
			"reach it. Does nothing if it runs already. Its data go with its pod.",
		Example: "  bin/install --broker-url-file \"$(bin/cluster broker)\"\n" +
			"  bin/cluster kubectl -n rabbitmq exec deploy/rabbitmq -- sh -c '/usr/lib/rabbitmq/lib/*/sbin/rabbitmqctl list_queues'",
		Args: cobra.NoArgs,
		RunE: on(func(c *cluster, command *cobra.Command, _ []string) error { return c.broker(command.Context()) }),
	}
}

func (c *cluster) broker(ctx context.Context) error {
	begun := time.Now()
	if _, err := c.control(); err != nil {
		return err
	}
	s, err := c.load()
	if err != nil {
		return err
	}
	if s.ControlPlane {
		return errors.New("this cluster is a control plane only: bin/cluster down, then bin/cluster up")
	}
	archive, err := c.brokerArchive(ctx)
	if err != nil {
		return err
	}
	place := c.path("broker-url")
	password, err := brokerPassword(place)
	if err != nil {
		return err
	}
	if password == "" {
		if err := c.loadImages(ctx, []string{archive}, 0); err != nil {
			return err
		}
		if password, err = newBrokerPassword(place); err != nil {
			return err
		}
	}
	objects := strings.NewReplacer("PASSWORD", password, "IMAGE", brokerImage).Replace(brokerObjects)
	if err := c.kubectlRun(ctx, objects, "apply", "--filename=-"); err != nil {
		return err
	}
	if err := c.kubectlRun(ctx, "", "--namespace=rabbitmq", "rollout", "status", "deployment/rabbitmq", "--timeout="+startLimit.String()); err != nil {
		return fmt.Errorf("RabbitMQ does not start: %w", err)
	}
	say("RabbitMQ runs (service rabbitmq, namespace rabbitmq) after %.1f s; next: bin/install --broker-url-file %s", time.Since(begun).Seconds(), place)
	fmt.Println(place)
	return nil
}

// brokerPassword reads the password from the file with the URL; empty if there is none yet.
func brokerPassword(place string) (string, error) {
	text, err := os.ReadFile(place)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	address, err := url.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		return "", fmt.Errorf("%s holds no URL: remove it, and run this again", place)
	}
	password, _ := address.User.Password()
	return password, nil
}

// newBrokerPassword writes the file with the URL. It comes before the broker, so that whoever goes on after a killed
// run knows what the broker was told.
func newBrokerPassword(place string) (string, error) {
	password := randomWord()
	address := "amqp://mayfly:" + password + "@rabbitmq.rabbitmq.svc:5672/%2f\n"
	if err := replaceFile(place, []byte(address), 0o600); err != nil {
		return "", err
	}
	return password, giveToUser(place)
}

// kubectlRun runs kubectl to its end.
func (c *cluster) kubectlRun(ctx context.Context, input string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit+10*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, c.tool("kubectl"), args...)
	command.Env = append(os.Environ(), c.kubectlEnvironment()...)
	command.Stdin = strings.NewReader(input)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %s: %w", strings.Join(args, " "), strings.TrimSpace(string(output)), err)
	}
	return nil
}

// brokerArchive packs the root file system that the tests of the broker level use, once.
func (c *cluster) brokerArchive(ctx context.Context) (string, error) {
	root := os.Getenv(brokerRootVariable)
	if root == "" {
		return "", fmt.Errorf("%s is not set: run bin/cluster, which sets it", brokerRootVariable)
	}
	archive := filepath.Join(c.cache, "cluster", "images", filepath.Base(root)+"-"+brokerRecipe+".tar")
	if _, err := os.Stat(archive); err == nil {
		return archive, nil
	}
	begun := time.Now()
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(archive + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(archive); err == nil {
		return archive, nil // another one packed it meanwhile
	}
	layer := archive + ".layer"
	defer os.Remove(layer)
	args := []string{"--create", "--file=" + layer, "--directory=" + root, "--numeric-owner"}
	for _, path := range brokerWithout {
		args = append(args, "--exclude="+path)
	}
	if output, err := exec.CommandContext(ctx, "tar", append(args, ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot pack %s: %s: %w", root, strings.TrimSpace(string(output)), err)
	}
	if err := writeImage(archive, brokerImage, layer, imageConfig{User: "rabbitmq", Entrypoint: []string{"/bin/sh"}}); err != nil {
		return "", err
	}
	// Clusters that use a former one have links to it.
	all, err := filepath.Glob(filepath.Join(filepath.Dir(archive), "*.tar"))
	if err != nil {
		return "", err
	}
	for _, other := range all {
		if other != archive {
			_ = os.Remove(other)
		}
	}
	say("packing RabbitMQ took %.1f s", time.Since(begun).Seconds())
	return archive, nil
}
