# Serves /guest at a port: nginx.sh PORT
cat >/tmp/nginx.conf <<C
daemon off;
master_process off;
user root;
error_log stderr;
pid /tmp/nginx.pid;
events { }
http {
    access_log off;
    client_body_temp_path /tmp/client;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen $1;
        root /guest;
    }
}
C
echo nginx begins
exec nginx -c /tmp/nginx.conf
