package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// startLimit is how long a part may take to be ready, even on a busy machine.
const startLimit = 2 * time.Minute

// startAPI starts etcd and API server and waits until they answer.
func (c *cluster) startAPI(ctx context.Context, control int, client *kubernetes.Clientset) error {
	etcd := within(control, "etcd",
		"--data-dir="+c.path("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		// What a power cut would lose is nothing that anybody wants back.
		"--unsafe-no-fsync", "--logger=zap", "--log-level=warn",
	)
	if _, err := c.spawn("control/etcd", etcd); err != nil {
		return err
	}
	api := within(control, c.tool("kube"), "kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address="+controlAddress, "--advertise-address="+controlAddress, "--secure-port="+apiPort,
		"--tls-cert-file="+c.path("pki", "apiserver.crt"), "--tls-private-key-file="+c.path("pki", "apiserver.key"),
		"--token-auth-file="+c.path("pki", "tokens.csv"), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.path("pki", "sa.key"),
		"--service-account-signing-key-file="+c.path("pki", "sa.key"),
		"--service-cluster-ip-range="+serviceRange,
		"--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true",
	)
	ended, err := c.spawn("control/apiserver", api)
	if err != nil {
		return err
	}
	err = await(ctx, "API server", startLimit, ended, func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, c.tail("control/apiserver"))
	}
	return nil
}

// startControllers starts controller-manager and scheduler and waits until pods can be made and placed.
func (c *cluster) startControllers(ctx context.Context, control int, client *kubernetes.Clientset) error {
	manager := within(control, c.tool("kube"), "kube-controller-manager",
		"--kubeconfig="+c.path("controller-manager.kubeconfig"),
		"--use-service-account-credentials=true",
		"--service-account-private-key-file="+c.path("pki", "sa.key"),
		"--root-ca-file="+c.path("pki", "ca.crt"),
		"--leader-elect=false", "--bind-address=127.0.0.1",
		// A lost node is noticed in 16 s instead of 50.
		"--node-monitor-grace-period=16s",
		// At the default rate it takes 4 s to make its clients.
		"--kube-api-qps=200", "--kube-api-burst=400",
		// It would make a directory of the machine's own.
		"--flex-volume-plugin-dir="+c.path("volume-plugins"),
	)
	managerEnded, err := c.spawn("control/controller-manager", manager)
	if err != nil {
		return err
	}
	scheduler := within(control, c.tool("kube"), "kube-scheduler",
		"--kubeconfig="+c.path("scheduler.kubeconfig"), "--leader-elect=false", "--bind-address=127.0.0.1")
	schedulerEnded, err := c.spawn("control/scheduler", scheduler)
	if err != nil {
		return err
	}
	err = await(ctx, "controller-manager", startLimit, managerEnded, func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, c.tail("control/controller-manager"))
	}
	err = await(ctx, "scheduler", startLimit, schedulerEnded, func(ctx context.Context) error {
		conn, err := dialIn(ctx, control, "127.0.0.1:10259")
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, c.tail("control/scheduler"))
	}
	return nil
}

// corefile answers for the cluster's names and says that there are no others.
const corefile = `cluster.local in-addr.arpa {
    bind ADDRESS
    errors
    ready ADDRESS:8181
    kubernetes {
        kubeconfig KUBECONFIG CONTEXT
        ttl 1
    }
}
. {
    bind ADDRESS
    template ANY ANY {
        rcode NXDOMAIN
    }
}
`

// startDNS starts CoreDNS and waits until it knows the services.
func (c *cluster) startDNS(ctx context.Context, control int) error {
	text := strings.NewReplacer("ADDRESS", controlAddress, "KUBECONFIG", c.path("inside.kubeconfig"), "CONTEXT", c.contextName()).Replace(corefile)
	if err := os.WriteFile(c.path("Corefile"), []byte(text), 0o644); err != nil {
		return err
	}
	resolv := "nameserver " + controlAddress + "\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
	if err := os.WriteFile(c.path("resolv.conf"), []byte(resolv), 0o644); err != nil {
		return err
	}
	ended, err := c.spawn("control/dns", within(control, c.tool("coredns"), "-conf", c.path("Corefile")))
	if err != nil {
		return err
	}
	asker := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialIn(ctx, control, address)
		},
	}}
	err = await(ctx, "DNS", startLimit, ended, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+controlAddress+":8181/ready", nil)
		if err != nil {
			return err
		}
		response, err := asker.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", response.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, c.tail("control/dns"))
	}
	return nil
}

// startForwarder listens on a free loopback port of the machine for the API server; returns the port.
func (c *cluster) startForwarder(control int) (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return 0, err
	}
	defer file.Close()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	command := exec.Command(self, "forward", fmt.Sprint(control), controlAddress+":"+apiPort)
	command.ExtraFiles = []*os.File{file}
	if _, err := c.spawn(forwarderRole, command); err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, nil
}
