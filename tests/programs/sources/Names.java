// Names as Java finds them: `java Names.java NAME...`, `-` reads names from stdin.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.util.Arrays;
import java.util.List;

class Names {
    static String look(String name) {
        try {
            return String.join(" ", Arrays.stream(InetAddress.getAllByName(name))
                    .map(InetAddress::getHostAddress).sorted().toList());
        } catch (UnknownHostException error) {
            return "no such name";
        }
    }

    public static void main(String[] words) throws Exception {
        for (var word : words) {
            var names = word.equals("-")
                    ? new BufferedReader(new InputStreamReader(System.in)).lines()
                    : List.of(word).stream();
            names.forEach(name -> System.out.println(look(name)));
        }
    }
}
