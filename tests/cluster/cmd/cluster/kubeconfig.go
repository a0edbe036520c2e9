package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// userFile is the kubeconfig of the user's shell, and what it was before us.
type userFile struct {
	Path string `json:"path"`
	// Own: the file is ours alone (--kubeconfig), not one that we add a context to.
	Own bool `json:"own"`
	// Former is the current context before us.
	Former string `json:"former"`
	// Created: there was no file.
	Created bool `json:"created"`
}

// context describes how a user reaches the API server at an address.
func (c *cluster) context(address, user, token string) (*api.Config, error) {
	authority, err := os.ReadFile(c.path("pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	name := c.contextName()
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{
		Server:                   "https://" + address,
		TLSServerName:            controlAddress,
		CertificateAuthorityData: authority,
	}
	config.AuthInfos[name] = &api.AuthInfo{Token: token}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return config, nil
}

// writeKubeconfig writes the file for a user inside the cluster's network.
func (c *cluster) writeKubeconfig(path, user, token string) error {
	config, err := c.context(controlAddress+":"+apiPort, user, token)
	if err != nil {
		return err
	}
	return clientcmd.WriteToFile(*config, path)
}

// enter adds the context to the user's kubeconfig and makes it the current one.
func (c *cluster) enter(config *api.Config, own string) (userFile, error) {
	name := c.contextName()
	if own != "" {
		path, err := filepath.Abs(own)
		if err != nil {
			return userFile{}, err
		}
		return userFile{Path: path, Own: true}, writeOwned(path, config)
	}
	file := userFile{Path: clientcmd.NewDefaultPathOptions().GetDefaultFilename()}
	whole, err := clientcmd.LoadFromFile(file.Path)
	if errors.Is(err, fs.ErrNotExist) {
		file.Created = true
		whole, err = api.NewConfig(), nil
	}
	if err != nil {
		return userFile{}, fmt.Errorf("cannot read %s: %w; correct it, or use --kubeconfig FILE", file.Path, err)
	}
	// Ours there already: left by a run that was killed.
	if whole.CurrentContext != name {
		file.Former = whole.CurrentContext
	}
	whole.Clusters[name] = config.Clusters[name]
	whole.AuthInfos[name] = config.AuthInfos[name]
	whole.Contexts[name] = config.Contexts[name]
	whole.CurrentContext = name
	return file, writeOwned(file.Path, whole)
}

// leave undoes enter.
func (c *cluster) leave(file userFile) error {
	if file.Own {
		return removeIfThere(file.Path)
	}
	whole, err := clientcmd.LoadFromFile(file.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove context %s from %s: %w", c.contextName(), file.Path, err)
	}
	name := c.contextName()
	if whole.Contexts[name] == nil && whole.CurrentContext != name {
		return nil
	}
	delete(whole.Clusters, name)
	delete(whole.AuthInfos, name)
	delete(whole.Contexts, name)
	if whole.CurrentContext == name {
		whole.CurrentContext = ""
		if whole.Contexts[file.Former] != nil {
			whole.CurrentContext = file.Former
		}
	}
	if file.Created && len(whole.Contexts)+len(whole.Clusters)+len(whole.AuthInfos) == 0 {
		return removeIfThere(file.Path)
	}
	return writeOwned(file.Path, whole)
}

func writeOwned(path string, config *api.Config) error {
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return err
	}
	return giveToUser(path)
}

// giveToUser makes a file belong to the user who called us by sudo.
func giveToUser(paths ...string) error {
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil {
		return nil
	}
	gid, err := strconv.Atoi(os.Getenv("SUDO_GID"))
	if err != nil {
		return nil
	}
	for _, path := range paths {
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
