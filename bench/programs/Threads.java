// SPDX-License-Identifier: GPL-2.0-or-later
// Sixteen threads that allocate, beside those of the virtual machine.
import java.util.ArrayList;
import java.util.List;

public class Threads {
    public static void main(String[] arguments) throws InterruptedException {
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < 16; i++) {
            Thread thread = new Thread(() -> {
                List<byte[]> kept = new ArrayList<>();
                for (int j = 0; j < 200; j++) {
                    kept.add(new byte[100_000]);
                    if (kept.size() > 20) kept.clear();
                }
            });
            threads.add(thread);
            thread.start();
        }
        for (Thread thread : threads) thread.join();
    }
}
